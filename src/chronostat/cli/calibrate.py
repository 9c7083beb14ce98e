"""chronostat calibrate, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import Seed, Sets
from chronostat.cli.terminal import for_people, out


def calibrate(
    controller: Annotated[
        Path, typer.Argument(metavar="CONTROLLER", help="Directory of a controller: RUN/controller.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write the renewed one; in its place if absent."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Requests that came by, as own samples; absent: the data of the training."),
    ] = None,
    executions: Annotated[int, typer.Option(min=20, help="Most executions, warming up among them.")] = 60,
    seed: Seed = None,
    overrides: Sets = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every setting, before and now.")
    ] = None,
) -> None:
    """Renew what settings take on this machine or day, in few executions; what is known of quality stays."""
    with for_people():
        from chronostat.cli.output import require_writable
        from chronostat.config import refuse_others

        require_writable({"--json": json_file})
        said = (
            "calibrate takes keys of model, and measure.threads, flush_denormals and time_limit_s; quality is untouched"
        )
        taken = ("model.", "measure.threads=", "measure.flush_denormals=", "measure.time_limit_s=")
        refuse_others(overrides or (), taken, said)
        from chronostat.cli.actions import calibrate as action

        action.calibrate(controller, to or controller, data, executions, seed or 0, overrides or (), json_file, out)
