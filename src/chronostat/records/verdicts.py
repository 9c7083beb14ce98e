"""What many executions say together: estimates, comparisons and how a policy did."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chronostat.records.budgets import Budget
from chronostat.records.plain_data import Number, Upper

Verdict = Literal["faster", "slower", "same", "undecided", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A point with its 95 % interval."""

    point: Number
    low: Number
    high: Upper


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One latency of one arm against the same latency of the common partner.

    Attributes:
        metric: the latency's name, ``prefill_ms`` or another.
        ratio: arm / partner, dimensionless; an interval of 0 to infinity says that there are too few pairs for one. The
            point is that of all pairs; the interval, which earlier looks narrow, can end beside it.
        verdict: what the interval says; once given it stays.
        pairs: repeats of the arm that had a partner's repeat beside them and were used.
        margin: the arm is ``same`` where the whole interval lies within a factor of 1 + margin of 1.
        left_out: how many repeats of the arm were left out, by reason.
        flags: what a reader has to know, in words: why it is undecided or invalid, what was left out.
    """

    metric: str
    ratio: Estimate
    verdict: Verdict
    pairs: int
    margin: float
    left_out: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PolicyScore:
    """How one policy did on the judged samples under one budget.

    Attributes:
        policy: ``controller``, ``best fixed``, ``static mix``, ``full`` or one of ``validation.beside``.
        settings: the settings it used with their shares, most used first.
        share_within: share of requests within ``budget_ms``.
        gain: accuracy of the controller less that of this policy, paired by sample; None for the controller.
        kept: whether the budget was kept by its own rule (mean, or 95 % of requests).
        unmeetable: samples that no measured setting brings within a deadline; for every policy alike they count in the
            mean latency alone.
    """

    policy: str
    budget: Budget
    budget_ms: float
    samples: int
    settings: tuple[tuple[str, float], ...]
    accuracy: Estimate
    mean_ms: Estimate
    p50_ms: float
    p95_ms: float
    share_within: Estimate
    gain: Estimate | None
    kept: bool
    unmeetable: int = 0
