"""What a person sees in the terminal: bars while a run goes on, tables at its end."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from chronostat.records import Phase, PolicyScore
from chronostat.report.text import milliseconds, percent_interval, points_interval
from chronostat.store import Validation
from chronostat.survey import Survey
from chronostat.surveyed import stage_rows, summary_rows, verdict_rows
from chronostat.surveyed import title as survey_title

PHASE_NAMES: dict[Phase, str] = {
    "warmup": "check and warm up",
    "calibrate": "calibrate",
    "train": "train",
    "select": "find the best fixed settings",
    "test": "judge on the test split",
    "rank": "rank the decoder blocks",
}


class Bars:
    """One progress bar for each phase, with the time it has left; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._task = TaskID(0)
        self._name = ""
        self._note = ""

    def begin(self, phase: Phase, seconds: float) -> None:
        """Start a bar."""
        self._name, self._note = PHASE_NAMES[phase], ""
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
        self._note = note
        if self._bars is not None:
            self._bars.update(self._task, completed=min(fraction, 1.0), note=note)

    def warn(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(f"warning: {text}")

    def end(self, note: str) -> None:
        """Replace the bar by one line."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._console.print(f"{self._name}: {', '.join(filter(None, (self._note, note)))}")


def verdict_table(validation: Validation) -> Table:
    """The controller beside what it has to beat, budget by budget."""
    metric = validation.metric or "latency"
    table = Table(
        title=f"{validation.samples} paired test samples; latency is {validation.source or 'measured'} {metric} + "
        "controller_ms,\nits mean under a mean budget, its 95th percentile under a deadline; [95 % intervals]",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    for head in ("accuracy (%)", "gain (points)", "latency", "share", "kept"):
        table.add_column(head, justify="right", no_wrap=True)
    for budget in dict.fromkeys(score.budget for score in validation.scores):
        scores = [score for score in validation.scores if score.budget == budget]
        table.add_section()
        table.add_row(str(budget), "", "", milliseconds(scores[0].budget_ms), "100 %", style="bold")
        for score in scores:
            table.add_row(*_cells(score))
    return table


def _cells(score: PolicyScore) -> Sequence[str]:
    latency_ms = score.mean_ms.point if score.budget.kind == "mean" else score.p95_ms
    return (
        f" {score.policy}",
        percent_interval(score.accuracy).replace(" %", ""),
        points_interval(score.gain),
        milliseconds(latency_ms),
        f"{100 * latency_ms / score.budget_ms:.0f} %",
        "yes" if score.kept else "no",
    )


def survey_tables(survey: Survey) -> list[Table]:
    """Median of each stage under each arm; and, where there are several, the verdicts against the first."""
    stages = Table(title=survey_title(survey), title_justify="left")
    stages.add_column("stage", no_wrap=True)
    for column in survey.columns:
        stages.add_column(column.name, justify="right")
    for rows in (stage_rows(survey), summary_rows(survey)):
        for name, cells in rows:
            stages.add_row(name, *cells)
        stages.add_section()
    verdicts = verdict_rows(survey)
    if not verdicts:
        return [stages]
    against = Table(title=f"divided by {survey.columns[0].name} [95 % interval]", title_justify="left")
    against.add_column("latency", no_wrap=True)
    for column in survey.columns[1:]:
        against.add_column(column.name, justify="right")
    for name, cells in verdicts:
        against.add_row(name, *cells)
    return [stages, against]
