"""What the report shows, read from the store; refuses to put unlike numbers side by side."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, get_args

from chronostat.compare.reasons import kind_of
from chronostat.errors import StoreError, UnlikeConditions
from chronostat.records import (
    LATENCY_METRICS,
    NOT_CALLED,
    Budget,
    Conditions,
    Decision,
    LatencyMetric,
    Setting,
    Source,
    Step,
    knob_value,
)
from chronostat.report.text import is_full
from chronostat.runs.store import RunStore, Validation
from chronostat.runs.store.run import VALIDATION

STAGES = ("vision", "projector", "llm_prefill", "prefill_rest", "decode", "other")
MOST_BARS = 8


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run whose numbers can be compared with each other."""

    store: RunStore
    metadata: Mapping[str, Any]
    metric: LatencyMetric
    source: Source
    validation: Validation | None

    @property
    def space(self) -> dict[str, list[float | list[int]]]:
        """Levels of each knob, full first; empty if not recorded."""
        return self.metadata.get("space") or {}


class PhaseCount(NamedTuple):
    """What the store holds of one phase; ``called``: executions whose ``generate()`` was called."""

    trials: int
    executions: int
    invalid: int
    called: int


class MeasuredSetting(NamedTuple):
    """One setting over all its stored executions; latency is the run's metric without the controller."""

    setting: str
    n: int
    quality: float | None
    mean_ms: float
    p50_ms: float
    p95_ms: float


class StageMeans(NamedTuple):
    """Mean milliseconds of each stage of ``STAGES`` under one setting."""

    setting: str
    n: int
    means_ms: tuple[float, ...]


def look_at(store: RunStore) -> RunView:
    """Read a run and make sure that it has one source, one metric and one set of conditions.

    Raises:
        UnlikeConditions: it has more than one; names them.
        StoreError: the run cannot be read.
    """
    metadata = store.metadata
    store.require_like_executions()
    validation = Validation.from_json(store.read_json(VALIDATION)) if store.holds(VALIDATION) else None
    return RunView(
        store=store,
        metadata=metadata,
        metric=_one_metric(metadata, validation),
        source=_one_source(store, metadata, validation),
        validation=_like_conditions(metadata, validation),
    )


def _one_source(store: RunStore, metadata: Mapping[str, Any], validation: Validation | None) -> Source:
    rows = store.query("SELECT source, count(*) FROM executions WHERE source IS NOT NULL GROUP BY source").fetchall()
    found = {source: f"{n} executions" for source, n in rows}
    for where, source in (("run.json", metadata.get("source")), (VALIDATION, validation and validation.source)):
        if source is not None:
            found.setdefault(str(source), where)  # a file may hold anything
    if len(found) > 1:
        places = "; ".join(f"{source}: {where}" for source, where in sorted(found.items()))
        raise UnlikeConditions(f"this run mixes latencies of more than one source ({places}); run anew")
    return _known(next(iter(found), "measured"), get_args(Source), "source")


def _one_metric(metadata: Mapping[str, Any], validation: Validation | None) -> LatencyMetric:
    metric = _known(metadata.get("metric") or "prefill_ms", LATENCY_METRICS, "metric")
    judged = validation and validation.metric
    if judged not in {None, metric}:
        raise UnlikeConditions(
            f"the run's metric is {metric}, but it was validated with {judged}; validate it again with {metric}"
        )
    return metric


def _known(value: str, allowed: tuple[Any, ...], what: str) -> Any:  # noqa: ANN401 - one of the allowed
    if value not in allowed:
        raise StoreError(f"run.json: {what} = {value!r}; allowed are {', '.join(allowed)}")
    return value


def _like_conditions(metadata: Mapping[str, Any], validation: Validation | None) -> Validation | None:
    """The validation, if it was measured under the run's conditions."""
    if validation is not None and validation.conditions is not None and metadata.get("conditions"):
        Conditions.from_json(metadata["conditions"]).require_comparable(validation.conditions)
    return validation


def phase_counts(run: RunView) -> dict[str, PhaseCount]:
    """What the store holds, phase by phase in the order they ran."""
    rows = run.store.query(
        "SELECT phase, count(DISTINCT record), count(*), count(invalid), "
        f"count(*) FILTER (NOT ends_with(coalesce(invalid, ''), '{NOT_CALLED}')) "
        "FROM executions GROUP BY phase ORDER BY min(record)"
    ).fetchall()
    return {phase: PhaseCount(*counts) for phase, *counts in rows}


def invalid_reasons(run: RunView) -> list[tuple[str, str, int]]:
    """Phase, first reason and number of the executions that failed; reasons that differ in numbers are one."""
    sql = "SELECT phase, invalid, count(*) FROM executions WHERE invalid IS NOT NULL GROUP BY ALL ORDER BY min(record)"
    found: dict[tuple[str, str], tuple[str, str, int]] = {}
    for phase, reason, number in cast("list[tuple[str, str, int]]", run.store.query(sql).fetchall()):
        _, first, before = found.setdefault((phase, kind_of(reason)), (phase, reason, 0))
        found[phase, kind_of(reason)] = (phase, first, before + number)
    return sorted(found.values())


def measured_settings(run: RunView) -> list[MeasuredSetting]:
    """Every setting that was measured, the dearest first; warm-ups apart."""
    rows = run.store.query(
        f"SELECT setting, count(*), avg(quality), avg({run.metric}), quantile_cont({run.metric}, 0.5), "
        f"quantile_cont({run.metric}, 0.95) FROM executions WHERE phase <> 'warmup' AND {run.metric} IS NOT NULL "
        "GROUP BY setting ORDER BY 4 DESC, 1"
    ).fetchall()
    return [MeasuredSetting(*row) for row in rows]


def stage_means(run: RunView) -> tuple[str, list[StageMeans]]:
    """Of which phases, and the stages of ``full`` and of the settings that were chosen (else: measured) most."""
    judged = "phase = 'test' AND prefill_ms IS NOT NULL"
    if run.store.query(f"SELECT 1 FROM executions WHERE {judged} LIMIT 1").fetchall():
        where, phases = judged, "test"
    else:
        where, phases = "phase <> 'warmup' AND prefill_ms IS NOT NULL", "all phases but the warm-up"
    columns = ", ".join(f"avg(coalesce({stage}_ms, 0))" for stage in STAGES)
    rows = run.store.query(
        f"SELECT setting, count(*), {columns} FROM executions WHERE {where} GROUP BY setting ORDER BY 2 DESC, 1"
    ).fetchall()
    measured = {setting: StageMeans(setting, n, tuple(means)) for setting, n, *means in rows}
    chosen = Counter(str(decision.setting) for decision in run.store.decisions())
    full = [setting for setting in measured if is_full(Setting.parse(setting), run.space)]
    wanted = dict.fromkeys([*full, *(setting for setting, _ in chosen.most_common()), *(() if chosen else measured)])
    shown = [measured[setting] for setting in wanted if setting in measured and any(measured[setting].means_ms)]
    return phases, sorted(shown[:MOST_BARS], key=lambda means: -sum(means.means_ms))


def learning_steps(run: RunView) -> list[Step]:
    """The steps in which something was measured, each once: a resumed run repeats those since its checkpoint."""
    last = {step.index: step for step in run.store.steps()}
    return [step for step in last.values() if math.isfinite(step.quality)]


class KnobChoices(NamedTuple):
    """How often each value of each knob was chosen.

    Attributes:
        values: ``knob=value``, in the order of the action space.
        columns: what the choices are split by.
        shares: for each value and column the share of the column's decisions, shape [values][columns].
    """

    values: list[str]
    columns: list[str]
    shares: list[list[float]]


def choices_by_budget(run: RunView) -> KnobChoices:
    """Split by budget, means first."""
    decisions = run.store.decisions()
    budgets = sorted({decision.budget for decision in decisions}, key=lambda b: (b.kind != "mean", b.fraction))
    return _choices(run, [(str(decision.budget), decision) for decision in decisions], list(map(str, budgets)))


def choices_by_kind(run: RunView, budget: Budget) -> KnobChoices:
    """Split by kind of question under one budget."""
    decisions = [decision for decision in run.store.decisions() if decision.budget == budget]
    columns = sorted({decision.kind or "any" for decision in decisions})
    return _choices(run, [(decision.kind or "any", decision) for decision in decisions], columns)


def middle_budget(run: RunView) -> Budget | None:
    """The middle ``mean`` budget that decisions were made under, else the middle one of all."""
    budgets = {decision.budget for decision in run.store.decisions()}
    means = {budget for budget in budgets if budget.kind == "mean"}
    ordered = sorted(means or budgets, key=lambda budget: budget.fraction)
    return ordered[len(ordered) // 2] if ordered else None


def _choices(run: RunView, decisions: Iterable[tuple[str, Decision]], columns: list[str]) -> KnobChoices:
    totals: Counter[str] = Counter()
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for column, decision in decisions:
        totals[column] += 1
        for word in str(decision.setting).split():
            counts[word][column] += 1
    levels = [word for knob, values in run.space.items() for word in _words(knob, values)]
    values = list(dict.fromkeys([*levels, *counts]))
    return KnobChoices(
        values, columns, [[counts[value][column] / totals[column] for column in columns] for value in values]
    )


def _words(knob: str, levels: Iterable[float | list[int]]) -> list[str]:
    return [str(Setting({knob: knob_value(level)})) for level in levels]
