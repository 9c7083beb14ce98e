"""chronostat ask, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import Sets, finite
from chronostat.cli.terminal import for_people, out
from chronostat.errors import ConfigError


def ask(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run whose controller chooses; absent: see --controller.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image of the request; repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the request.")] = None,
    budget_ms: Annotated[
        float | None, typer.Option(callback=finite, metavar="MS", help="What the answer may take; needs a controller.")
    ] = None,
    controller: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of a controller. Absent, as RUN: full answers.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Directory or name; absent: the controller's, or the bundled model.")
    ] = None,
    overrides: Sets = None,
) -> None:
    """One answer within a budget: what was chosen, and what it took."""
    with for_people():
        if run is not None and controller is not None:
            raise ConfigError("RUN and --controller both name a controller; give one of them")
        held = controller if run is None else run / "controller"
        if (held is None) != (budget_ms is None):
            raise ConfigError(
                "--budget-ms and a controller (RUN or --controller DIR) go together: it chooses what fits the budget; "
                "give both or neither"
            )
        from chronostat.cli.actions import ask as action

        action.ask(
            action.Asked(
                controller=held,
                model=model,
                images=image or (),
                prompt=prompt,
                budget_ms=budget_ms,
                overrides=overrides or (),
            ),
            out,
        )
