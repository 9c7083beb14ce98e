"""What more than one verb takes on the command line: each type holds the flag and its help."""

import math
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from chronostat.records.choices import MOST_THREADS, DeviceName, DtypeName, EngineChoice


def finite(value: float | None) -> float | None:
    """Refuse ``inf`` and ``nan``, which have no end, as a length of time."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no length of time; give a finite number")
    return value


RunDir = Annotated[Path | None, typer.Option(help="Where the run is stored; runs/<verb>-<time> if absent.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a configuration key, such as train.seconds=60; repeatable."
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything that is drawn.")]
Sample = Annotated[
    bool, typer.Option("--sample", help="Sample answers as the model's generation_config says; absent: greedy.")
]
Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Directory or name; absent or bundled: the bundled model.")
]
Device = Annotated[DeviceName, typer.Option(help="Where the model runs.")]
Dtype = Annotated[
    DtypeName,
    typer.Option(metavar="TYPE", help="Of the weights: auto, float32, bfloat16 or float16."),
]
Engine = Annotated[
    EngineChoice,
    typer.Option(
        metavar="NAME",
        help="How generate() runs: eager, graph (the decoder replayed from CUDA graphs), auto (graph where it works).",
    ),
]
Threads = Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Torch threads on the CPU.")]
Layout = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON or TOML with module paths of vision, projector, blocks and head."),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        "--template", metavar="KEY=VALUE", help="What the chat template is told: enable_thinking=false; repeatable."
    ),
]
MovedData = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Where the data of the run is now, if it has moved.")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]


def model_path(model: str | None) -> str | None:
    """None for the bundled model."""
    return None if model == "bundled" else model


def new_folder(verb: str) -> Path:
    """Where a run is stored that names no directory."""
    return Path("runs") / f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def command_line() -> str:
    """What was typed, as the run records it."""
    return shlex.join(["chronostat", *sys.argv[1:]])


def with_sampling(overrides: list[str] | None, *, sample: bool) -> list[str]:
    """The overrides with what ``--sample`` stands for, which therefore counts for more than the file."""
    return [*(overrides or ()), *(["measure.sample=true"] if sample else ())]
