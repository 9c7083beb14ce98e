"""What needs no looking at requests: the best fixed setting and the best mix, by everything that was measured."""

from dataclasses import dataclass

import numpy as np

from chronostat.evidence.linear import Flags, Floats
from chronostat.policy.frontier import can_meet
from chronostat.policy.policy import Policy
from chronostat.records import DEADLINE_SHARE, Budget


@dataclass(frozen=True)
class Mix:
    """Two settings, and the share of requests that gets the dearer one."""

    low: int
    high: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The policies for one budget that do not look at the request.

    Attributes:
        fixed: position of the best fixed setting; the fastest one where none keeps the budget.
        accuracy: its expected quality.
        shortfall: how far it may be off: expected quality of the setting that is truly best under this budget, less its
            own.
        mix: the best mix of two settings by the toss of a coin; for ``mean`` budgets only.
    """

    fixed: int
    accuracy: float
    shortfall: float
    mix: Mix | None


def rivals_of(policy: Policy, budget: Budget) -> Rivals:
    """The strongest that the evidence of a run knows.

    They are held to the budget itself by what is likeliest: without the margin and the doubt that the controller allows
    for.
    """
    prompts, tokens = policy.requests.prompts, policy.requests.tokens
    forecast = policy.forecast
    latency = forecast.mean(prompts, tokens).mean(axis=0) - forecast.controller  # a fixed setting needs no controller
    if budget.kind == "mean":
        keeps = latency <= budget.fraction
    else:
        late = forecast.late(prompts, tokens, budget.fraction + forecast.controller, doubt=0.0)
        keeps = late[can_meet(late[:, policy.legal])].mean(axis=0) <= 1 - DEADLINE_SHARE
    keeps &= policy.legal
    quality = policy.plain_quality
    if not keeps.any():
        fastest = int(np.where(policy.legal, latency, np.inf).argmin())
        return Rivals(fixed=fastest, accuracy=float(quality[fastest]), shortfall=0.0, mix=None)
    fixed = int(np.where(keeps, quality, -np.inf).argmax())
    may_be = np.einsum("f,kfs->ks", prompts.mean(axis=0), policy.draws)
    return Rivals(
        fixed=fixed,
        accuracy=float(quality[fixed]),
        shortfall=float((may_be[:, keeps].max(axis=1) - may_be[:, fixed]).mean()),
        mix=_best_mix(quality, latency, policy.legal, budget.fraction) if budget.kind == "mean" else None,
    )


def _best_mix(quality: Floats, latency: Floats, legal: Flags, limit: float) -> Mix:
    """The mix of two settings of highest quality whose mean latency is a limit; one setting can keep it."""
    positions = np.flatnonzero(legal).tolist()
    below = [i for i in positions if latency[i] <= limit]
    above = [i for i in positions if latency[i] > limit]
    mixes = [Mix(i, i, 0.0) for i in below]
    mixes += [Mix(i, j, float((limit - latency[i]) / (latency[j] - latency[i]))) for i in below for j in above]
    return max(mixes, key=lambda mix: (1 - mix.share) * quality[mix.low] + mix.share * quality[mix.high])
