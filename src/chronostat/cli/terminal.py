"""Where verbs print, and how they end: a mistake is one message and an exit status."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from chronostat.errors import ChronostatError

INTERRUPTED = 130  # as a shell reports SIGINT
_WIDE = 200


def _console(*, stderr: bool = False) -> Console:
    """Without markup: paths and answers may hold square brackets. In a file or pipe tables get the width they need."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDE
    return console


out, problems = _console(), _console(stderr=True)


@contextmanager
def for_people(run_dir: Path | None = None, *, resume_with: str | None = None) -> Generator[None]:
    """Turn errors into one message and an exit status; what was stored before stays readable.

    Args:
        run_dir: where this verb stores.
        resume_with: the verb that continues an interrupted run with ``--resume``, if there is one.
    """
    try:
        yield
    except ChronostatError as error:
        problems.print(f"chronostat: {error}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        kept = f"; what was measured is in {run_dir}" if run_dir and run_dir.is_dir() else ""
        kept += f", continue with: chronostat {resume_with} --resume {run_dir}" if kept and resume_with else ""
        problems.print(f"chronostat: interrupted{kept}")
        raise typer.Exit(INTERRUPTED) from None
