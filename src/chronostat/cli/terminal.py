"""Where verbs print, and how they end: a mistake is one message and an exit status."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer
from rich.console import Console

from chronostat.errors import ChronostatError
from chronostat.progress import DataWarning

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
        with _data_warnings_in_words():
            yield
    except ChronostatError as error:
        problems.print(f"chronostat: {error}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        kept = f"; what was measured is in {run_dir}" if run_dir and run_dir.is_dir() else ""
        kept += f", continue with: chronostat {resume_with} --resume {run_dir}" if kept and resume_with else ""
        problems.print(f"chronostat: interrupted{kept}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _data_warnings_in_words() -> Generator[None]:
    """What is read in part is one line on standard error, once for each kind; other warnings are as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", DataWarning)
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, DataWarning):
                problems.print(f"chronostat: note: {message}")
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
