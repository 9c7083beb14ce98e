"""How the machine behaved while the run measured: drift, noise, disturbances, failures and cost, from the store."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from chronostat.compare.reasons import kind_of
from chronostat.control.drift import Anchor, Reference, TimeLine, smoothed
from chronostat.records import Estimate
from chronostat.report.run.gather import RunView


class AnchorPoint(NamedTuple):
    """One execution of ``full``."""

    phase: str
    at_s: float
    latency_ms: float
    tokens: int | None


class KnownDrift(NamedTuple):
    """What a trial was told of the drift before it ran."""

    at_s: float
    drift: float


class MachineTime(NamedTuple):
    """Anchors and recorded drift on one time line; processes that measured one after the other are laid end to end."""

    anchors: list[AnchorPoint]
    known: list[KnownDrift]


def machine_time(run: RunView) -> MachineTime:
    """What the trials say of the machine, in the order they ran."""
    rows = run.store.query(
        "SELECT any_value(phase), any_value(started_s), any_value(drift), "
        f"any_value({run.metric}) FILTER (is_anchor), any_value(prompt_tokens) FILTER (is_anchor) "
        "FROM executions WHERE phase <> 'warmup' GROUP BY record ORDER BY record"
    ).fetchall()
    line = TimeLine()
    found = MachineTime([], [])
    for phase, started_s, drift, latency_ms, tokens in rows:
        at_s = line.place(started_s)
        if latency_ms is not None:
            found.anchors.append(AnchorPoint(phase, at_s, latency_ms, tokens))
        if drift is not None:
            found.known.append(KnownDrift(at_s, drift))
    return found


def reference(run: RunView, anchors: Sequence[AnchorPoint]) -> Reference:
    """The calibration, or where there was none the median of all anchors."""
    full: Mapping[str, float] = run.metadata.get("full_ms") or {}
    calibrated = [a for a in anchors if a.phase == "calibrate"] or anchors
    tokens = [anchor.tokens for anchor in calibrated if anchor.tokens]
    return Reference(
        full_ms=full.get("calibrate") or median(anchor.latency_ms for anchor in calibrated),
        tokens=median(tokens) if tokens else None,
    )


def drift_curve(run: RunView, anchors: Sequence[AnchorPoint]) -> tuple[float, list[Estimate]]:
    """The reference in milliseconds, and the smoothed drift at each anchor relative to it."""
    start = reference(run, anchors)
    return start.full_ms, smoothed([Anchor(a.at_s, a.latency_ms, a.tokens) for a in anchors], start)


class TwiceMeasured(NamedTuple):
    """``full`` twice on one judged sample: the later execution over the earlier one."""

    sample: str
    ratio: float
    disturbed: bool


def measured_twice(run: RunView) -> list[TwiceMeasured]:
    """The A/A pairs of the judged samples."""
    rows = run.store.query(
        f"SELECT any_value(sample_id), arg_max({run.metric}, position) / arg_min({run.metric}, position), "
        f"count(disturbed) > 0 FROM executions WHERE phase = 'test' AND {run.metric} IS NOT NULL "
        "AND setting IN (SELECT setting FROM executions WHERE is_anchor) "
        "GROUP BY record, setting HAVING count(*) > 1 ORDER BY record"
    ).fetchall()
    return [TwiceMeasured(*row) for row in rows]


class Disturbed(NamedTuple):
    """Executions of one phase that were disturbed in one way."""

    phase: str
    reason: str
    executions: int
    of_all: int


def disturbances(run: RunView) -> list[Disturbed]:
    """Reasons by phase, the most frequent first."""
    rows = run.store.query(
        "SELECT phase, disturbed, count(*), min(record) FROM executions GROUP BY phase, disturbed ORDER BY 4"
    ).fetchall()
    totals: Counter[str] = Counter()
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for phase, disturbed, executions, _ in rows:
        totals[phase] += executions
        for reason in (disturbed or "").split("; ") if disturbed else ():
            reasons[phase][kind_of(reason)] += executions
    return [
        Disturbed(phase, reason, executions, totals[phase])
        for phase in totals
        for reason, executions in reasons[phase].most_common()
    ]


class PhaseCost(NamedTuple):
    """What one phase executed, in milliseconds.

    Attributes:
        executed_ms: inside ``generate()``.
        around_ms: preprocessing and choosing.
        anchors_ms: of ``executed_ms``: anchors that nobody had drawn.
        again_ms: of ``executed_ms``: settings that ran once more on the same sample.
        failed: executions that failed; what they cost is not known.
    """

    phase: str
    executions: int
    executed_ms: float
    around_ms: float
    anchors_ms: float
    again_ms: float
    failed: int


def phase_costs(run: RunView) -> list[PhaseCost]:
    """In the order the phases ran."""
    rows = run.store.query(
        "WITH numbered AS (SELECT *, row_number() OVER (PARTITION BY record, setting ORDER BY position) AS turn "
        "FROM executions) "
        "SELECT phase, count(*), coalesce(sum(total_ms), 0), "
        "coalesce(sum(coalesce(preprocess_ms, 0) + controller_ms), 0), "
        "coalesce(sum(total_ms) FILTER (is_anchor AND draw_count = 0), 0), "
        "coalesce(sum(total_ms) FILTER (turn > 1), 0), count(invalid) "
        "FROM numbered GROUP BY phase ORDER BY min(record)"
    ).fetchall()
    return [PhaseCost(*row) for row in rows]


def taken_out(run: RunView) -> Mapping[str, str]:
    """Settings that left the action space, with the reason of their last failure."""
    metadata: Mapping[str, Any] = run.metadata.get("taken_out") or {}
    return {setting: str(reason) for setting, reason in metadata.items()}
