"""What chronostat demo does: train, validate and report in one process."""

import math
from pathlib import Path

from rich.console import Console

from chronostat.cli.actions.report import report
from chronostat.cli.actions.validate import judge_and_say
from chronostat.cli.console import Bars
from chronostat.config import Config
from chronostat.runs.session import begin
from chronostat.runs.training import train as run_training
from chronostat.validation import judged_budgets


def demo(config: Config, folder: Path, command: str, out: Console) -> None:
    """Train, validate and report in one process."""
    limit = "" if config.seconds is None else f": at most {math.ceil(config.seconds / 60)} minutes"
    out.print(f"Chronostat runs its main job in {folder}{limit}. It reads no earlier run.")
    with begin(config, run_dir=folder, command=command, progress=Bars(out)) as session:
        budgets = judged_budgets(session)  # what cannot be judged is refused before minutes of training
        judge_and_say(session, run_training(session, budgets), out)
    report(folder, out)
