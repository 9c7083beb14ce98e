"""What chronostat report does: the page and the picture of a run."""

from pathlib import Path

from rich.console import Console

from chronostat.report import write_picture, write_report
from chronostat.runs.store import RunStore
from chronostat.runs.store.run import VALIDATION


def report(folder: Path, out: Console) -> None:
    """The page of a run, and its picture once there is a verdict."""
    store = RunStore.open(folder)
    out.print(f"report: {write_report(store)}")
    if store.holds(VALIDATION):
        out.print(f"picture: {write_picture(store, folder / 'report.svg')}")
