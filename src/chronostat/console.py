"""What a person sees in the terminal: bars while a run goes on, tables at its end."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from chronostat.records import Phase, PolicyScore
from chronostat.report.text import milliseconds, ms_interval, percent, percent_interval, points_interval
from chronostat.store import Validation
from chronostat.survey import STAGES, Survey

PHASE_NAMES: dict[Phase, str] = {
    "warmup": "check and warm up",
    "calibrate": "calibrate",
    "train": "train",
    "select": "find the best fixed settings",
    "test": "judge on the test split",
}


class Bars:
    """One progress bar for each phase, with the time it has left; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._task = TaskID(0)
        self._name = ""

    def begin(self, phase: Phase, seconds: float) -> None:
        """Start a bar."""
        self._name = PHASE_NAMES[phase]
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: at most {seconds:.0f} s")
            return
        columns = (
            TextColumn("{task.description:30}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, transient=True)
        self._bars.start()
        self._task = self._bars.add_task(self._name, total=1.0, note="")

    def advance(self, fraction: float, note: str) -> None:
        """Move the bar."""
        if self._bars is not None:
            self._bars.update(self._task, completed=min(fraction, 1.0), note=note)

    def end(self, note: str) -> None:
        """Replace the bar by one line."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._console.print(f"{self._name}: {note}")


def verdict_table(validation: Validation) -> Table:
    """The controller beside what it has to beat, budget by budget."""
    metric = validation.metric or "latency"
    table = Table(
        title=f"{validation.samples} paired test samples; latency is {validation.source or 'measured'} {metric} + "
        "controller_ms; brackets are 95 % intervals",
        title_justify="left",
    )
    for head in ("budget", "policy", "accuracy", "controller's gain (points)", "mean latency", "of budget", "kept"):
        table.add_column(head, justify="left" if head in {"budget", "policy"} else "right", no_wrap=True)
    budgets = list(dict.fromkeys(score.budget for score in validation.scores))
    for budget in budgets:
        for score in (each for each in validation.scores if each.budget == budget and each.policy != "full"):
            table.add_row(*_cells(score), style="bold" if score.policy == "controller" else None)
        table.add_section()
    return table


def _cells(score: PolicyScore) -> Sequence[str]:
    ours = score.policy == "controller"
    used = score.mean_ms.point if score.budget.kind == "mean" else score.p95_ms
    return (
        f"{score.budget} = {milliseconds(score.budget_ms)}" if ours else "",
        score.policy,
        percent_interval(score.accuracy),
        points_interval(score.gain),
        milliseconds(score.mean_ms.point),
        percent(used / score.budget_ms) + (" (p95)" if score.budget.kind == "deadline" else ""),
        "yes" if score.kept else "NO",
    )


def survey_table(survey: Survey) -> Table:
    """Median of each stage under each setting."""
    conditions = survey.conditions
    repeats = len(next(iter(survey.executions.values())))
    table = Table(
        title=f"{survey.model}, {survey.source}: median of {repeats} repeats in ms [95 % interval]; "
        f"{conditions.cpu if conditions.device == 'cpu' else conditions.device}, {conditions.threads} thread(s), "
        f"{conditions.dtype}, torch {conditions.torch}, transformers {conditions.transformers}",
        title_justify="left",
    )
    table.add_column("stage", no_wrap=True)
    for setting in survey.executions:
        table.add_column(str(setting), justify="right")
    for stage in STAGES:
        medians = [survey.stage(setting, stage) for setting in survey.executions]
        table.add_row(stage, *("-" if median is None else ms_interval(median) for median in medians))
    first = [repeats[0] for repeats in survey.executions.values()]
    table.add_section()
    table.add_row("tokens in", *(str(execution.prompt_tokens) for execution in first))
    table.add_row("of these image tokens", *(str(execution.image_tokens) for execution in first))
    table.add_row("tokens out", *(str(execution.timing.new_tokens) for execution in first if execution.timing))
    table.add_row("answer", *(execution.answer or "-" for execution in first))
    return table
