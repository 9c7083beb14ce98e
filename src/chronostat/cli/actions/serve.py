"""What chronostat serve does: load, listen, warm up, answer until it is told to end."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image
from rich.console import Console

from chronostat.cli.actions.held import config_with
from chronostat.control.controller import read_for
from chronostat.errors import ConfigError
from chronostat.execution.execute import request_for
from chronostat.records import Setting
from chronostat.runs.workload import load_model
from chronostat.studies.renewing import passing

try:
    from chronostat.serving.building import Wanted, build
    from chronostat.serving.keys import read_keys
    from chronostat.serving.server import bound, is_loopback, serve_until_told
except ImportError as error:
    raise ConfigError(
        f"serving needs packages that are not installed ({error}); install them with: pip install 'chronostat[serve]'"
    ) from error

_REQUESTS = 12  # of the data, for the first calibration


@dataclass(frozen=True, kw_only=True)
class Typed:
    """The words of the command."""

    controller: Path | None
    model: str | None
    setting: str
    host: str
    port: int
    api_key_file: Path | None
    most_waiting: int
    data: Path | None
    renew_every_s: float
    store_requests: bool
    run_dir: Path
    overrides: Sequence[str]
    command: str


def serve(typed: Typed, out: Console) -> None:
    """Serve until SIGTERM or ctrl-C.

    Raises:
        ConfigError: a word cannot be used, or the controller's metric is none of a caller's wait.
        ModelError, StoreError, DataError, MeasurementError: the model, the controller or its data cannot be used.
    """
    keys = () if typed.api_key_file is None else read_keys(typed.api_key_file)
    config = config_with(typed.controller, typed.model, typed.overrides)
    with bound(typed.host, typed.port) as listening:
        if not keys and not is_loopback(typed.host):
            out.print(f"warning: {typed.host} can be reached by others without a key; ask for one with --api-key-file")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pictures have a limit of our own, far below
        vlm = load_model(config)
        controller = None if typed.controller is None else read_for(typed.controller, vlm.model, vlm.processor)
        samples = () if controller is None else islice(passing(config, typed.data), _REQUESTS)
        app, service = build(
            Wanted(
                config=config,
                vlm=vlm,
                controller=controller,
                setting=Setting.parse(typed.setting),
                requests=[request_for(sample, vlm.processor, None) for sample in samples],
                run_dir=typed.run_dir,
                command=typed.command,
                most_waiting=typed.most_waiting,
                renew_every_s=typed.renew_every_s,
                keys=keys,
                store_requests=typed.store_requests,
                told=out.print,
            )
        )
        serve_until_told(
            app,
            service,
            listening,
            began=lambda address: out.print(f"{address}/v1 warms up; requests are stored in {typed.run_dir}"),
        )
