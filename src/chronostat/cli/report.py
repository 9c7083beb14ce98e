"""chronostat report, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.terminal import for_people, out


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]) -> None:
    """Write RUN/report.html, one page that needs no network, and RUN/report.svg once there is a verdict."""
    with for_people(run):
        from chronostat.cli.actions import report as action

        action.report(run, out)
