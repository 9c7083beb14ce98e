"""What a person sees in the terminal: bars while a run goes on, tables at its end."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from chronostat.records import Phase, PolicyScore
from chronostat.report.survey import Row, stage_rows, summary_rows, verdict_rows
from chronostat.report.survey import title as survey_title
from chronostat.report.text import percent_interval, points_interval
from chronostat.runs.store import Validation
from chronostat.studies.survey import Survey

PHASE_NAMES: dict[Phase, str] = {
    "warmup": "check and warm up",
    "calibrate": "calibrate",
    "train": "train",
    "select": "find the best fixed settings",
    "test": "judge on the test split",
    "rank": "rank the decoder blocks",
}
_NAME_WIDTH = max(map(len, PHASE_NAMES.values()))
_BAR_WIDTH = 12  # then a line of 80 characters has room for the time and a note
_GAP = 2  # characters between two columns of a table
_EDGE = 1  # rich pads a column of a least width also where the table ends
_LEAST_CELL = len("needs 100")


class Bars:
    """One progress bar for each phase, with the time it has left; plain lines where there is no terminal.

    Args:
        console: where they are shown.
        unsaid: phases that leave no line, only a bar while they go on.
    """

    def __init__(self, console: Console, unsaid: Collection[Phase] = ()) -> None:
        self._console = console
        self._unsaid = {PHASE_NAMES[phase] for phase in unsaid}
        self._bars: Progress | None = None
        self._task = TaskID(0)
        self._name = ""
        self._note = ""

    def begin(self, phase: Phase, length: str) -> None:
        """Start a bar."""
        self._name, self._note = PHASE_NAMES[phase], ""
        if not self._console.is_terminal:
            self._say(length)
            return
        columns = (
            TextColumn("{task.description}", table_column=Column(min_width=_NAME_WIDTH, no_wrap=True)),
            BarColumn(_BAR_WIDTH),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(min_width=len("0:00:00"), no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
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
        self._say(", ".join(filter(None, (self._note, note))))

    def _say(self, text: str) -> None:
        if self._name not in self._unsaid:
            self._console.print(f"{self._name}: {text}")


def _table(title: str | None) -> Table:
    """A table without a frame, narrow enough for 80 characters in a line."""
    return Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )


def verdict_table(validation: Validation) -> Table:
    """The controller beside what it has to beat, budget by budget."""
    metric = validation.metric or "latency"
    table = _table(
        f"{validation.samples} paired test samples [95 % intervals]; latency in ms is "
        f"{validation.source or 'measured'}\n{metric} + controller_ms: its mean under a mean budget, its 95th\n"
        "percentile under a deadline"
    )
    table.add_column("", no_wrap=True)
    for head in ("accuracy (%)", "gain (points)", "latency", "share", "kept"):
        table.add_column(head, justify="right", overflow="fold")
    for budget in dict.fromkeys(score.budget for score in validation.scores):
        scores = [score for score in validation.scores if score.budget == budget]
        table.add_section()
        table.add_row(str(budget), "", "", f"{scores[0].budget_ms:.1f}", "100 %", style="bold")
        for score in scores:
            table.add_row(*_cells(score))
    return table


def _cells(score: PolicyScore) -> Sequence[str]:
    latency_ms = score.mean_ms.point if score.budget.kind == "mean" else score.p95_ms
    return (
        f" {score.policy}",
        percent_interval(score.accuracy).replace(" %", ""),
        points_interval(score.gain),
        f"{latency_ms:.1f}",
        f"{100 * latency_ms / score.budget_ms:.0f} %",
        "yes" if score.kept else "no",
    )


def survey_tables(survey: Survey, width: int) -> list[Table]:
    """Median of each stage under each arm; and, where there are several, the verdicts against the first.

    Args:
        survey: what was found.
        width: characters in a line; arms that do not fit go into a further table below.
    """
    names = [column.name for column in survey.columns]
    tables = _side_by_side(survey_title(survey), "stage", names, [stage_rows(survey), summary_rows(survey)], width)
    verdicts = verdict_rows(survey)
    if verdicts:
        title = f"latency / {names[0]} [95 % interval] and verdict"
        tables += _side_by_side(title, "latency", names[1:], [verdicts], width)
    return tables


def _side_by_side(
    title: str, head: str, names: Sequence[str], groups: Sequence[Sequence[Row]], width: int
) -> list[Table]:
    """Numbers are never cut: a name, a verdict or an answer that is longer than them is folded."""
    first = max(len(name) for rows in groups for name, _ in rows)
    needed = [max(_LEAST_CELL, *(_number_width(cells[arm]) for _, cells in groups[0])) for arm in range(len(names))]
    tables: list[Table] = []
    for arms in _lines_of(needed, width - first - _EDGE):
        table = _table(None if tables else title)
        table.add_column(head, no_wrap=True)
        for arm in arms:
            table.add_column(names[arm], justify="right", overflow="fold", min_width=needed[arm])
        for rows in groups:
            for name, cells in rows:
                table.add_row(name, *(cells[arm] for arm in arms))
            table.add_section()
        tables.append(table)
    return tables


def _number_width(cell: str) -> int:
    """Of a number with its interval, without what follows."""
    return cell.find("]") + 1 or len(cell)


def _lines_of(widths: Sequence[int], room: int) -> list[list[int]]:
    """Positions of as many columns as fit into a line each, at least one."""
    lines: list[list[int]] = [[]]
    left = room
    for position, each in enumerate(widths):
        if lines[-1] and each + _GAP > left:
            lines.append([])
            left = room
        lines[-1].append(position)
        left -= each + _GAP
    return lines
