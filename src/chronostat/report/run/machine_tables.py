"""Tables of how the machine behaved, and of the verdicts that rest on it."""

import math
from collections.abc import Mapping

from chronostat.records import Comparison
from chronostat.report.run.gather import RunView
from chronostat.report.run.machine import PhaseCost, disturbances, phase_costs, taken_out
from chronostat.report.run.tables import PageTable, Row
from chronostat.report.text import ABSENT, count, percent, points_interval, seconds


def machine_tables(run: RunView) -> dict[str, PageTable]:
    """The tables that this run has rows for, by name."""
    made = (comparisons(run), noise(run), disturbed(run), out(run), cost(run))
    return {table.name: table for table in made if table.rows}


def comparisons(run: RunView) -> PageTable:
    """Five verdicts for accuracy and for latency."""
    validation = run.validation
    compared = validation.comparisons if validation else ()
    margin = 100 * compared[0].latency.margin if compared else 0.0
    stop = validation.stop if validation and validation.stop else ABSENT
    return PageTable(
        name="comparisons",
        title="Verdicts, paired by sample",
        caption="The controller against each policy under each budget. Gain in points of accuracy; latency ratio: the "
        f"controller's {run.metric} + controller_ms over the policy's, the typical one of the paired samples "
        "(Hodges-Lehmann); brackets are 95 % intervals. The verdict is same if the whole interval lies within "
        f"{margin:.0f} points, or {margin:.0f} % for latency. Disturbed executions are left out of latencies. Judging "
        f"ended because {stop}. Source: validation.json, {run.source}.",
        heads=("budget", "against", "gain (points)", "accuracy", "latency ratio", "latency", "pairs", "left out"),
        rows=[
            Row(
                cells=[
                    each.budget,
                    each.policy,
                    points_interval(each.gain),
                    each.accuracy,
                    _ratio(each.latency),
                    each.latency.verdict,
                    count(each.latency.pairs),
                    _reasons(each.latency.left_out),
                ]
            )
            for each in compared
        ],
        folded=True,
    )


def _ratio(compared: Comparison) -> str:
    ratio = compared.ratio
    if not math.isfinite(ratio.point):
        return "invalid"
    if not math.isfinite(ratio.high):
        return f"{ratio.point:.3f} [too few pairs]"
    return f"{ratio.point:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _reasons(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{n} {reason}" for reason, n in left_out.items()) or "0"


def noise(run: RunView) -> PageTable:
    """The noise floor in one line."""
    floor = run.validation.noise if run.validation else None
    rows: list[Row] = []
    if floor is not None:
        cells = [
            count(floor.asked),
            count(floor.comparison.pairs),
            percent(floor.spread),
            _ratio(floor.comparison),
            floor.comparison.verdict,
            _reasons(floor.left_out),
        ]
        rows = [Row(cells=cells)]
    return PageTable(
        name="noise-floor",
        title="Noise floor",
        caption=f"full twice on the same judged sample (A/A): half of the pairs differ by more than the spread; the "
        f"ratio is later over earlier {run.metric} with its 95 % interval, and should not be told from 1. Source: "
        f"validation.json, {run.source}.",
        heads=("pairs executed", "pairs used", "spread", "later / earlier", "verdict", "left out"),
        rows=rows,
    )


def disturbed(run: RunView) -> PageTable:
    """What else happened on the machine, by phase."""
    return PageTable(
        name="disturbed",
        title="Disturbed executions",
        caption="Executions during which something else took part, by the facts of the system, never for being slow. "
        "Judging leaves them out of latencies; learning averages over all of them. One execution can have more than "
        "one reason. Source: the stored executions.",
        heads=("phase", "reason", "executions", "share of the phase"),
        rows=[
            Row(cells=[each.phase, each.reason, count(each.executions), percent(each.executions / each.of_all)])
            for each in disturbances(run)
        ],
    )


def out(run: RunView) -> PageTable:
    """Settings that left the action space."""
    return PageTable(
        name="taken-out",
        title="Settings taken out",
        caption="Failed three times in a row; the controller neither proposes nor chooses them. Source: run.json.",
        heads=("setting", "reason"),
        rows=[Row(cells=[setting, reason], mark="bad") for setting, reason in taken_out(run).items()],
    )


def cost(run: RunView) -> PageTable:
    """What measuring cost, by phase."""
    said = run.metadata.get("phases") or {}
    rows = [_cost_row(each, (said.get(each.phase) or {}).get("seconds")) for each in phase_costs(run)]
    return PageTable(
        name="cost",
        title="Cost of measuring",
        caption="Seconds inside generate(), and what of it went to anchors that nobody had drawn and to executions of "
        "a setting that had run on that sample already (A/A, repeats). Around: preprocessing and choosing. The rest of "
        "a phase's time is hooks, scoring, learning and storing, outside of every measured span. What the hooks cost "
        "inside of it is measured by python -m benchmarks.overhead (docs/trust.md). Source: the stored executions; "
        "run.json for the time.",
        heads=(
            "phase",
            "executions",
            "executed",
            "of this anchors",
            "of this again",
            "around",
            "rest of the time",
            "failed",
        ),
        rows=rows,
    )


def _cost_row(each: PhaseCost, whole_s: float | None) -> Row:
    spent_s, whole_ms = (each.executed_ms + each.around_ms) / 1e3, each.executed_ms or 1.0
    return Row(
        cells=[
            each.phase,
            count(each.executions),
            seconds(each.executed_ms / 1e3),
            percent(each.anchors_ms / whole_ms),
            percent(each.again_ms / whole_ms),
            seconds(each.around_ms / 1e3),
            ABSENT if whole_s is None else seconds(max(whole_s - spent_s, 0.0)),
            count(each.failed),
        ]
    )
