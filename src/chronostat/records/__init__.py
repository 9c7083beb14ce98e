"""Immutable facts: what ran, what it cost, what it answered. No torch in here.

Every number carries its unit in its name; every timing carries its source. The definitions of the stages stand in
docs/definitions.md.
"""

from chronostat.records.budgets import DEADLINE_SHARE, Budget, BudgetKind
from chronostat.records.conditions import NOT_RECORDED, Conditions
from chronostat.records.executions import (
    LATENCY_METRICS,
    NOT_CALLED,
    SERVED_METRICS,
    Execution,
    LatencyMetric,
    Source,
    StageTiming,
)
from chronostat.records.messages import Role, Turn
from chronostat.records.plain_data import Number, plain
from chronostat.records.settings import KnobValue, Setting, knob_value, value_text
from chronostat.records.trials import Decision, Phase, Step, Trial
from chronostat.records.verdicts import Comparison, Estimate, PolicyScore, Verdict

__all__ = [
    "DEADLINE_SHARE",
    "LATENCY_METRICS",
    "NOT_CALLED",
    "NOT_RECORDED",
    "SERVED_METRICS",
    "Budget",
    "BudgetKind",
    "Comparison",
    "Conditions",
    "Decision",
    "Estimate",
    "Execution",
    "KnobValue",
    "LatencyMetric",
    "Number",
    "Phase",
    "PolicyScore",
    "Role",
    "Setting",
    "Source",
    "StageTiming",
    "Step",
    "Trial",
    "Turn",
    "Verdict",
    "knob_value",
    "plain",
    "value_text",
]
