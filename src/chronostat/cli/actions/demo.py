"""What chronostat demo does: train, validate and report in one process."""

from pathlib import Path

from rich.console import Console

from chronostat.cli.actions.report import report
from chronostat.cli.actions.validate import judge_and_say
from chronostat.cli.console import Bars
from chronostat.config import Config
from chronostat.records import SERVED_METRICS
from chronostat.runs.plan import Plan
from chronostat.runs.session import begin
from chronostat.runs.training import train as run_training
from chronostat.validation import judged_budgets


def demo(config: Config, folder: Path, command: str, out: Console) -> None:
    """Train, validate and report in one process."""
    progress = Bars(out, unsaid={"warmup"})  # what it measures is what the first line says
    with begin(config, run_dir=folder, command=command, progress=progress) as session:
        budgets = judged_budgets(session)  # what cannot be judged is refused before minutes of training
        out.print(_what_it_takes(Plan.of(session), folder))
        judge_and_say(session, run_training(session, budgets), out)
    report(folder, out)
    out.print(_how_to_serve(config, folder))


def _how_to_serve(config: Config, folder: Path) -> str:
    if config.measure.latency_metric in SERVED_METRICS:
        return f"next: chronostat serve {folder}"
    return (
        "next, to answer OpenAI's clients within a budget: chronostat demo --set measure.latency_metric=request_ms "
        "--run-dir runs/serving, then chronostat serve runs/serving (docs/serving.md)"
    )


def _what_it_takes(plan: Plan, folder: Path) -> str:
    minutes = "1 minute" if plan.minutes == 1 else f"{plan.minutes} minutes"
    judged = f"all {plan.asked} test samples" if plan.samples == plan.asked else f"{plan.samples} of {plan.asked}"
    short = (
        "" if plan.samples == plan.asked else " test samples, as many as fit its time box or the least that say enough"
    )
    return (
        f"Chronostat runs its main job in {folder}: about {minutes} here, for {sum(plan.executions.values()):,} "
        f"executions of {1e3 * plan.execution_s:.0f} ms, as the warm-up measured; it judges on {judged}{short}."
    )
