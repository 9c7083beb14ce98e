"""chronostat doctor, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import Device, Dtype, Layout, Threads, TrustRemoteCode, finite, model_path
from chronostat.cli.terminal import for_people, out
from chronostat.records.choices import DEFAULT_THREADS


def doctor(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Directory or name; absent or bundled: the bundled model.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = DEFAULT_THREADS,
    trust_remote_code: TrustRemoteCode = False,
    layout: Layout = None,
    seconds: Annotated[float, typer.Option(min=0.1, callback=finite, help="Time box of the measured repeats.")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was found.")] = None,
) -> None:
    """Whether this machine can be trusted with a measurement; exit status 0: yes, 10: noisy, 11: it cannot measure."""
    with for_people():
        from chronostat.cli.actions import doctor as action
        from chronostat.cli.actions.measure import read_layout
        from chronostat.cli.output import require_writable
        from chronostat.config import Config, MeasureConfig, ModelConfig

        require_writable({"--json": json_file})
        own = ModelConfig(
            path=model_path(model),
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            layout=read_layout(layout) if layout else {},
        )
        status = action.doctor(Config(model=own, measure=MeasureConfig(threads=threads)), seconds, json_file, out)
    raise typer.Exit(status)
