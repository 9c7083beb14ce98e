"""The command line as a user types it: in this process where only its words matter, in its own where more does."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

FEW_SETTINGS = ("knobs.vision_tokens=[272, 16]", "knobs.moe_topk=[4]", "knobs.block_skip=[[], [3, 4]]")
TINY = (
    *FEW_SETTINGS,
    "train.calibration_executions=8",
    "train.select_executions=8",
    "train.executions=6",
    "validation.samples=4",
    "validation.mean_budgets=[0.7]",
    "validation.deadlines=[0.9]",
)


def sets(*overrides: str) -> list[str]:
    """``--set`` for each override."""
    return [word for override in overrides for word in ("--set", override)]


@dataclass(frozen=True)
class Said:
    """How a command ended, and its words."""

    status: int
    out: str
    err: str


def typed(*words: str | Path) -> Said:
    """A command in this process; whatever it does not handle itself rises."""
    from chronostat.cli.app import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def started(*words: str | Path, cwd: Path, **options: object) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "chronostat", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs tests in the background has ctrl-C switched off, and children inherit that
        preexec_fn=options.pop("before", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)),
        **options,
    )


def ended(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=3600)  # ends what hangs, not what is slow
    return Said(process.returncode, out, err)


def run(*words: str | Path, cwd: Path, **options: object) -> Said:
    return ended(started(*words, cwd=cwd, **options))


def refusal(said: Said) -> str:
    """The one message of a command that was refused."""
    assert said.status not in (0, 1)
    assert "Traceback" not in said.out + said.err
    (line,) = said.err.strip().splitlines()
    assert line.startswith("chronostat: ")
    return line.removeprefix("chronostat: ")


def executions(store, *phases: str) -> int:
    return sum(len(trial.executions) for phase in phases for trial in store.trials(phase))
