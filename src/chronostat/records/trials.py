"""What a run stores as it goes: trials, steps of the learner, decisions of the frozen controller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chronostat.records.budgets import Budget
from chronostat.records.executions import Execution
from chronostat.records.settings import Setting
from chronostat.records.verdicts import Estimate

Phase = Literal["warmup", "calibrate", "train", "select", "test", "rank"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The executions of several settings on one sample, in the order they ran.

    Attributes:
        index: position of the trial in its phase.
        draws: for each draw of the group, the position of its execution; equal draws share one.
        anchor: position of the execution of ``full`` that tracks drift, if this trial had one.
        probabilities: of each draw under the policy that drew it, exactly; empty where nothing was drawn.
        policy_version: of that policy, counted from 0 in its run; None where settings were drawn alike.
        budget: the budget under which the group was drawn, if a learner drew it.
        started_s: seconds since the run began.
        drift: latency of ``full`` then, relative to the calibration, from the anchors before this trial; None before
            the calibration has ended.
    """

    phase: Phase
    index: int
    sample_id: str
    executions: tuple[Execution, ...]
    draws: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    policy_version: int | None = None
    anchor: int | None = None
    budget: Budget | None = None
    started_s: float = 0.0
    drift: Estimate | None = None

    @property
    def asked(self) -> int:
        """Executions without an anchor that was only due: a slower machine has more of those."""
        return len(self.executions) - (self.anchor is not None and self.anchor not in self.draws)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The setting that the frozen controller chose for a sample under a budget."""

    sample_id: str
    split: str
    kind: str | None
    budget: Budget
    setting: Setting
    controller_ms: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One point of the learning curve.

    Attributes:
        executed_ms: milliseconds spent inside executions up to and including this step.
        metrics: what the learner reports of itself, by name.
    """

    index: int
    executed_ms: float
    quality: float
    latency_fraction: float
    budget: Budget
    metrics: Mapping[str, float] = field(default_factory=dict)
