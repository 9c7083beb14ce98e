"""chronostat serve, as it is typed."""

from pathlib import Path
from typing import Annotated

import typer

from chronostat.cli.options import RunDir, Sets, command_line, finite, new_folder
from chronostat.cli.terminal import for_people, out
from chronostat.errors import ConfigError


def serve(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run whose controller is served; absent: see --controller.")
    ] = None,
    controller: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of a controller. Absent, as RUN: --setting alone."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Directory or name; absent: the controller's, or the bundled model.")
    ] = None,
    setting: Annotated[
        str | None, typer.Option(metavar="'KNOB=VALUE ...'", help="What is served without a controller; absent: full.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; elsewhere than here others can ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that the system picks.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys, one a line, of which requests bring one.")
    ] = None,
    most_waiting: Annotated[int, typer.Option(min=1, help="Longest line; who comes later is told when to retry.")] = 64,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Requests of the kind to come, as own samples, for the first calibration."),
    ] = None,
    renew_every: Annotated[
        float,
        typer.Option(min=1, callback=finite, metavar="SECONDS", help="Age at which a controller is renewed."),
    ] = 3600.0,
    store_requests: Annotated[
        bool, typer.Option("--store-requests", help="Keep messages, pictures and answers in the log.")
    ] = False,
    run_dir: RunDir = None,
    overrides: Sets = None,
) -> None:
    """An OpenAI-compatible endpoint for one model that keeps a latency budget; chronostat report shows its day."""
    folder = run_dir or new_folder("serve")
    with for_people(folder):
        if run is not None and controller is not None:
            raise ConfigError("RUN and --controller both name a controller; give one of them")
        held = controller if run is None else run / "controller"
        if held is not None and setting is not None:
            raise ConfigError(f"--setting {setting!r}: the controller chooses settings; leave one of them out")
        if held is None and data is not None:
            raise ConfigError(f"--data {data} is for calibrating a controller; name one, or leave it out")
        from chronostat.cli.actions import serve as action

        action.serve(
            action.Typed(
                controller=held,
                model=model,
                setting=setting or "full",
                host=host,
                port=port,
                api_key_file=api_key_file,
                most_waiting=most_waiting,
                data=data,
                renew_every_s=renew_every,
                store_requests=store_requests,
                run_dir=folder,
                overrides=overrides or (),
                command=command_line(),
            ),
            out,
        )
