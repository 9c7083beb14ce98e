"""The tables of the page, as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chronostat.records import PolicyScore
from chronostat.report.run.gather import RunView, invalid_reasons, measured_settings, phase_counts
from chronostat.report.text import (
    ABSENT,
    choice_text,
    count,
    milliseconds,
    ms_interval,
    percent,
    percent_interval,
    points_interval,
    seconds,
    unmeetable_text,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line; ``mark`` is its CSS class."""

    cells: Sequence[str]
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """One table of the page.

    Attributes:
        name: id of its element.
        caption: units and source.
        heads: column headers with units.
        rows: the first cell of each is its header.
        folded: shown only when it is opened.
    """

    name: str
    title: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Row] = field(default_factory=tuple)
    folded: bool = False


def page_tables(run: RunView) -> dict[str, PageTable]:
    """The tables that this run has rows for, by name."""
    made = (verdicts(run), kinds(run), settings(run), phases(run), failures(run), conditions(run))
    return {table.name: table for table in made if table.rows}


def verdicts(run: RunView) -> PageTable:
    """The controller beside what it has to beat, budget by budget."""
    validation = run.validation
    scores = validation.scores if validation else ()
    return PageTable(
        name="verdicts",
        title="Verdict",
        caption=f"Judged on {count(validation.samples if validation else 0)} paired test samples. Latency is "
        f"{run.metric} + controller_ms (0 for fixed settings); brackets are 95 % intervals; the gain is the "
        "controller's accuracy less that of the line, paired by sample. A mean budget is kept if the mean latency is "
        "at most the budget, a deadline if at least 95 % of the requests that any setting brings within it are. "
        f"Source: validation.json, {run.source}.",
        heads=(
            "policy",
            "accuracy",
            "controller's gain (points)",
            "budget kept",
            "mean latency",
            "of full",
            "within budget",
            "p50",
            "p95",
            "n",
            "settings",
        ),
        rows=[row for budget in dict.fromkeys(s.budget for s in scores) for row in _budget_rows(run, budget)],
    )


def _budget_rows(run: RunView, budget: object) -> list[Row]:
    assert run.validation is not None
    scores = [score for score in run.validation.scores if score.budget == budget]
    selected = run.validation.selection.get(str(budget))
    head = f"{budget} of full = {milliseconds(scores[0].budget_ms)}"
    if selected:
        head += f"; {choice_text(selected)}"
    if scores[0].unmeetable:
        head += f"; {unmeetable_text(scores[0])}"
    return [Row(cells=[head], mark="group"), *(_score_row(score) for score in scores)]


def _score_row(score: PolicyScore) -> Row:
    full_ms = score.budget_ms / score.budget.fraction
    return Row(
        cells=[
            score.policy,
            percent_interval(score.accuracy),
            points_interval(score.gain),
            "yes" if score.kept else "no",
            ms_interval(score.mean_ms),
            percent(score.mean_ms.point / full_ms),
            percent_interval(score.share_within),
            milliseconds(score.p50_ms),
            milliseconds(score.p95_ms),
            count(score.samples),
            _shares(score.settings),
        ],
        mark="ours" if score.policy == "controller" else "",
    )


def _shares(shares: Sequence[tuple[str, float]], most: int = 3) -> str:
    shown = [setting if share == 1 else f"{100 * share:.0f} % {setting}" for setting, share in shares[:most]]
    rest = [f"{len(shares) - most} more"] if len(shares) > most else []
    return "; ".join([*shown, *rest])


def kinds(run: RunView) -> PageTable:
    """Accuracy and choices by kind of question."""
    scores = run.validation.by_kind if run.validation else ()
    rows = [
        Row(
            cells=[
                score.kind,
                score.budget,
                score.policy,
                percent(score.accuracy),
                count(score.n),
                _shares(sorted(score.setting_shares.items(), key=lambda item: -item[1])),
            ],
            mark="ours" if score.policy == "controller" else "",
        )
        for score in scores
    ]
    return PageTable(
        name="kinds",
        title="By kind of question",
        caption=f"Accuracy in percent of n samples. {_kinds_differ(run)}Source: validation.json, {run.source}.",
        heads=("kind", "budget", "policy", "accuracy", "n", "settings"),
        rows=rows,
        folded=True,
    )


def _kinds_differ(run: RunView) -> str:
    differ = run.validation and run.validation.kinds_differ
    if not differ:
        return ""
    most = "; ".join(f"{kind}: {setting}" for kind, setting in differ.most_chosen.items())
    return f"Most chosen under {differ.budget}: {most}; permutation test that they differ: p = {differ.p_value:.4f}. "


def settings(run: RunView) -> PageTable:
    """Every fixed setting: as it was judged, or else as it was measured."""
    if run.validation is not None and run.validation.fixed:
        return PageTable(
            name="settings",
            title="Fixed settings",
            caption=f"Each used for all judged samples. Latency is {run.metric}; brackets are 95 % intervals. Source: "
            f"validation.json, {run.source}.",
            heads=("setting", "accuracy", "mean latency", "p95", "n"),
            rows=[
                Row(
                    cells=[
                        score.setting,
                        percent_interval(score.accuracy),
                        ms_interval(score.mean_ms),
                        milliseconds(score.p95_ms),
                        count(score.n),
                    ]
                )
                for score in run.validation.fixed
            ],
            folded=True,
        )
    return PageTable(
        name="settings",
        title="Measured settings",
        caption=f"All stored executions but the warm-up. Latency is {run.metric}; quality is the mean score of the "
        "answers; samples differ between settings, so this is no verdict. Source: the stored executions, "
        f"{run.source}.",
        heads=("setting", "quality", "mean latency", "p50", "p95", "n"),
        rows=[
            Row(
                cells=[
                    row.setting,
                    percent(row.quality),
                    milliseconds(row.mean_ms),
                    milliseconds(row.p50_ms),
                    milliseconds(row.p95_ms),
                    count(row.n),
                ]
            )
            for row in measured_settings(run)
        ],
    )


def phases(run: RunView) -> PageTable:
    """What ran, and whether the counts agree."""
    said: Mapping[str, Mapping[str, Any]] = run.metadata.get("phases") or {}
    stored = phase_counts(run)
    rows: list[Row] = []
    for name in dict.fromkeys([*stored, *said]):
        metadata, held = said.get(name, {}), stored.get(name)
        agree = _agreement(held.called if held else 0, metadata)
        cells = [
            name,
            seconds(metadata.get("seconds")),
            count(held.trials if held else 0),
            count(held.executions if held else 0),
            count(held.invalid if held else 0),
            count(metadata.get("generate_calls")),
            agree,
        ]
        rows.append(Row(cells=cells, mark="bad" if agree == "no" else ""))
    return PageTable(
        name="phases",
        title="What ran",
        caption=_phases_caption(rows),
        heads=("phase", "time", "trials", "stored executions", "of these failed", "generate() calls counted", "agree"),
        rows=rows,
    )


def _agreement(called: int, metadata: Mapping[str, Any]) -> str:
    counted = metadata.get("generate_calls")
    if counted is None:
        return ABSENT
    return "yes" if counted == called else "no"


def _phases_caption(rows: Sequence[Row]) -> str:
    answers = {row.cells[-1] for row in rows}
    sentence = {
        frozenset({"yes"}): "In every phase the stored executions equal the generate() calls that were counted.",
        frozenset({ABSENT}): "No generate() calls were counted.",
    }.get(
        frozenset(answers),
        "The stored executions DO NOT equal the counted generate() calls in every phase."
        if "no" in answers
        else "Where generate() calls were counted, they equal the stored executions.",
    )
    apart = "Executions that failed before their call do not count here."
    return f"{sentence} {apart} Source: run.json for time and calls, the stored executions for the rest."


def failures(run: RunView) -> PageTable:
    """Executions that failed; they are in no number on the page."""
    return PageTable(
        name="failures",
        title="Failed executions",
        caption="Left out of every number on this page. Reasons that differ in numbers count as one. Source: the "
        "stored executions.",
        heads=("phase", "reason", "executions"),
        rows=[Row(cells=[phase, reason, count(n)]) for phase, reason, n in invalid_reasons(run)],
    )


def conditions(run: RunView) -> PageTable:
    """What must be equal for another run to be compared with this one."""
    recorded: Mapping[str, Any] = run.metadata.get("conditions") or {}
    return PageTable(
        name="conditions",
        title="Conditions",
        caption="Latencies of another run compare with these only if all of this is equal, but for affinity and "
        "commit, which are only told. Source: run.json.",
        heads=("condition", "value"),
        rows=[Row(cells=[name, str(value)]) for name, value in recorded.items()],
    )
