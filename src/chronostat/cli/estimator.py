"""chronostat estimator, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import MovedData, finite
from chronostat.cli.terminal import for_people, out


def evaluate_estimator(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a measured run.")],
    seconds: Annotated[float, typer.Option(min=1, callback=finite, help="Time box of the new measurements.")] = 30.0,
    requests: Annotated[
        int | None, typer.Option(min=5, help="Most held-out requests; at least 5 are measured in any time.")
    ] = None,
    data: MovedData = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the errors.")] = None,
) -> None:
    """How wrong estimates learned from a run are on held-out requests, beside measuring once."""
    with for_people():
        from chronostat.cli.actions import estimator as action
        from chronostat.cli.output import require_writable

        require_writable({"--json": json_file})
        action.evaluate(run, data, seconds, requests, json_file, out)
