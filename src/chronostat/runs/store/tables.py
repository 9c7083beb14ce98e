# pyright: reportUnknownParameterType=false
# pyarrow comes without types.
"""Which columns the tables have, and how records become rows and rows become the same records again."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import pyarrow as pa

from chronostat.errors import StoreError
from chronostat.records import Budget, Decision, Estimate, Execution, Setting, StageTiming, Step, Trial

Record = Trial | Decision | Step
Row = dict[str, Any]

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_WHOLES, _REALS = pa.list_(pa.int64()), pa.list_(pa.float64())
_BUDGET = {"budget_kind": _TEXT, "budget_fraction": _REAL}
_SETTING = {"setting": _TEXT, "knobs": _TEXT}

EXECUTIONS = pa.schema(
    {
        "record": _WHOLE,
        "phase": _TEXT,
        "trial_index": _WHOLE,
        "position": _WHOLE,
        "draws": _WHOLES,
        "draw_count": _WHOLE,
        "draw_probabilities": _REALS,
        "policy_version": _WHOLE,
        "is_anchor": _FLAG,
        "started_s": _REAL,
        "drift": _REAL,
        "drift_low": _REAL,
        "drift_high": _REAL,
        **_BUDGET,
        "sample_id": _TEXT,
        "split": _TEXT,
        "kind": _TEXT,
        **_SETTING,
        "source": _TEXT,
        "invalid": _TEXT,
        "unseen": _TEXT,
        "disturbed": _TEXT,
        "conditions": _TEXT,
        "sampling_seed": _WHOLE,
        "preprocess_ms": _REAL,
        "controller_ms": _REAL,
        "total_ms": _REAL,
        "request_ms": _REAL,
        "ttft_ms": _REAL,
        "prefill_ms": _REAL,
        "vision_ms": _REAL,
        "projector_ms": _REAL,
        "llm_prefill_ms": _REAL,
        "prefill_rest_ms": _REAL,
        "decode_ms": _REAL,
        "decode_ms_per_token": _REAL,
        "other_ms": _REAL,
        "new_tokens": _WHOLE,
        "decode_steps": _WHOLE,
        "prompt_tokens": _WHOLE,
        "image_tokens": _WHOLE,
        "quality": _REAL,
        "answer": _TEXT,
        "output_ids": _WHOLES,
    }
)
DECISIONS = pa.schema(
    {
        "record": _WHOLE,
        "sample_id": _TEXT,
        "split": _TEXT,
        "kind": _TEXT,
        **_BUDGET,
        **_SETTING,
        "controller_ms": _REAL,
    }
)
STEPS = pa.schema(
    {
        "record": _WHOLE,
        "step_index": _WHOLE,
        "executed_ms": _REAL,
        "quality": _REAL,
        "latency_fraction": _REAL,
        **_BUDGET,
        "metrics": pa.map_(_TEXT, _REAL),
    }
)
TRIALS_VIEW = """
CREATE VIEW trials AS
SELECT record, first(phase) AS phase, first(trial_index) AS trial_index, first(started_s) AS started_s,
       first(drift) AS drift, first(drift_low) AS drift_low, first(drift_high) AS drift_high,
       first(budget_kind) AS budget_kind, first(budget_fraction) AS budget_fraction,
       first(sample_id) AS sample_id, first(split) AS split, first(kind) AS kind,
       first(len(draws)) AS draws, first(policy_version) AS policy_version,
       count(*) AS executions, count(invalid) AS invalid_executions,
       bool_or(is_anchor) AS has_anchor, sum(total_ms) AS executed_ms
FROM executions GROUP BY record ORDER BY record
"""


@dataclass(frozen=True, kw_only=True)
class TableKind:
    """One kind of record in the store.

    Attributes:
        name: of the table, and of its folder in the run.
        record: the dataclass that one record is.
        schema: columns of its rows; ``record`` is the number of the record in the table, from 0.
        rows_of: the rows of record number n.
        records_of: the records of all rows, in order.
    """

    name: str
    record: type[Record]
    schema: pa.Schema
    rows_of: Callable[[int, Any], list[Row]]
    records_of: Callable[[Iterable[Row]], Iterator[Any]]


def _names(record: type, *left_out: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in left_out)


_TIMING = _names(StageTiming)
_EXECUTION = _names(Execution, "setting", "timing", "output_ids")


def _trial_rows(number: int, trial: Trial) -> list[Row]:
    if not trial.executions or any(execution.sample_id != trial.sample_id for execution in trial.executions):
        raise StoreError(
            f"{trial.phase} trial {trial.index} of sample {trial.sample_id!r} cannot be stored: it needs at least one "
            "execution, and all of them on its sample"
        )
    shared = {
        "record": number,
        "phase": trial.phase,
        "trial_index": trial.index,
        "draws": trial.draws,
        "draw_probabilities": trial.probabilities,
        "policy_version": trial.policy_version,
        "started_s": trial.started_s,
        **_drift_row(trial.drift),
        **_budget_row(trial.budget),
    }
    return [
        {
            **shared,
            "position": position,
            "draw_count": trial.draws.count(position),
            "is_anchor": position == trial.anchor,
            **execution_row(execution),
        }
        for position, execution in enumerate(trial.executions)
    ]


def execution_row(execution: Execution) -> Row:
    """What the table of executions says of one beside its trial."""
    timing = execution.timing
    return {
        **{name: getattr(execution, name) for name in _EXECUTION},
        **{name: getattr(timing, name, None) for name in _TIMING},
        **_setting_row(execution.setting),
        "request_ms": execution.request_ms,
        "output_ids": execution.output_ids,
    }


def _execution(row: Row) -> Execution:
    return Execution(
        **{name: row[name] for name in _EXECUTION},
        setting=Setting.parse(row["setting"]),
        timing=None if row["source"] is None else StageTiming(**{name: row[name] for name in _TIMING}),
        output_ids=tuple(row["output_ids"]),
    )


def _trials(rows: Iterable[Row]) -> Iterator[Trial]:
    for _, group in groupby(rows, key=lambda row: row["record"]):
        executions = list(group)
        first = executions[0]
        yield Trial(
            phase=first["phase"],
            index=first["trial_index"],
            sample_id=first["sample_id"],
            executions=tuple(_execution(row) for row in executions),
            draws=tuple(first["draws"]),
            probabilities=tuple(first["draw_probabilities"] or ()),
            policy_version=first["policy_version"],
            anchor=next((row["position"] for row in executions if row["is_anchor"]), None),
            budget=_budget(first),
            started_s=first["started_s"],
            drift=_drift(first),
        )


_DECISION = _names(Decision, "budget", "setting")


def _decision_rows(number: int, decision: Decision) -> list[Row]:
    plain = {name: getattr(decision, name) for name in _DECISION}
    return [{"record": number, **plain, **_budget_row(decision.budget), **_setting_row(decision.setting)}]


def _decisions(rows: Iterable[Row]) -> Iterator[Decision]:
    for row in rows:
        plain = {name: row[name] for name in _DECISION}
        yield Decision(**plain, budget=_need_budget(row), setting=Setting.parse(row["setting"]))


_STEP = _names(Step, "index", "budget", "metrics")


def _step_rows(number: int, step: Step) -> list[Row]:
    plain = {name: getattr(step, name) for name in _STEP}
    metrics = list(step.metrics.items())
    return [{"record": number, "step_index": step.index, **plain, **_budget_row(step.budget), "metrics": metrics}]


def _steps(rows: Iterable[Row]) -> Iterator[Step]:
    for row in rows:
        plain = {name: row[name] for name in _STEP}
        yield Step(index=row["step_index"], **plain, budget=_need_budget(row), metrics=dict(row["metrics"]))


def _drift_row(drift: Estimate | None) -> Row:
    if drift is None:
        return dict.fromkeys(("drift", "drift_low", "drift_high"))
    return {"drift": drift.point, "drift_low": drift.low, "drift_high": drift.high}


def _drift(row: Row) -> Estimate | None:
    if row["drift"] is None:
        return None
    return Estimate(point=row["drift"], low=row["drift_low"], high=row["drift_high"])


def _setting_row(setting: Setting) -> Row:
    return {"setting": str(setting), "knobs": json.dumps(dict(setting))}


def _budget_row(budget: Budget | None) -> Row:
    return {"budget_kind": budget and budget.kind, "budget_fraction": budget and budget.fraction}


def _budget(row: Row) -> Budget | None:
    return None if row["budget_kind"] is None else _need_budget(row)


def _need_budget(row: Row) -> Budget:
    return Budget(kind=row["budget_kind"], fraction=row["budget_fraction"])


TABLES: Mapping[str, TableKind] = {
    kind.name: kind
    for kind in (
        TableKind(name="executions", record=Trial, schema=EXECUTIONS, rows_of=_trial_rows, records_of=_trials),
        TableKind(name="decisions", record=Decision, schema=DECISIONS, rows_of=_decision_rows, records_of=_decisions),
        TableKind(name="steps", record=Step, schema=STEPS, rows_of=_step_rows, records_of=_steps),
    )
}


def to_table(kind: TableKind, first: int, records: Sequence[Record]) -> pa.Table:
    """Records number ``first`` and following as one table."""
    rows = [row for number, record in enumerate(records, start=first) for row in kind.rows_of(number, record)]
    return pa.Table.from_pylist(rows, schema=kind.schema)
