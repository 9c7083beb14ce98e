"""chronostat validate, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import MovedData, Sets, command_line
from chronostat.cli.terminal import for_people, out


def validate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Store the verdict as a run of its own.")] = None,
    data: MovedData = None,
    overrides: Sets = None,
) -> None:
    """Judge the controller of a run once on unseen samples, measured afresh beside fixed settings."""
    with for_people(to or run):
        from chronostat.cli.actions import validate as action

        action.validate(run, to, data, overrides or (), command_line(), out)
