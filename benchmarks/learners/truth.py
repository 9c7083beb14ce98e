"""What could be gained at best? Policies of someone who knows the truth about the requests that are judged."""

from dataclasses import dataclass

import numpy as np
from recipes.demo_vlm.gap import best_mix

from benchmarks.learners.world import World
from chronostat.evidence.linear import Floats
from chronostat.records import DEADLINE_SHARE, Budget


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True accuracies under a budget.

    Attributes:
        fixed: of the best setting for all requests.
        mix: of the best mix of two settings by the toss of a coin; under a deadline that of ``fixed``.
        by_kind: of the best policy that knows the kind of question; under a deadline with settings that keep it by
            themselves.
    """

    fixed: float
    mix: float
    by_kind: float


def truth_of(world: World, budget: Budget) -> Truth:
    """The truth; some setting keeps the budget."""
    overall = world.right.sum(axis=0)
    if budget.kind == "deadline":
        kept = world.within(budget.fraction) >= DEADLINE_SHARE
        fixed = float(overall[kept].max())
        return Truth(fixed=fixed, mix=fixed, by_kind=float(world.table.share @ world.by_kind[:, kept].max(axis=1)))
    cost = world.mean_cost
    return Truth(
        fixed=float(overall[cost <= budget.fraction].max()),
        mix=best_mix(cost, overall, budget.fraction),
        by_kind=_best_by_kind(cost, world.by_kind, world.table.share, budget.fraction),
    )


def _best_by_kind(cost: Floats, accuracy: Floats, share: Floats, limit: float) -> float:
    """The best accuracy at a mean cost by choosing, for each kind, between settings with a coin.

    Each kind begins at its cheapest setting; steps along the concave hulls are paid in the order of what they bring
    for their cost.

    Args:
        cost: shape [S].
        accuracy: shape [K, S].
        share: of each kind, shape [K].
        limit: of the mean cost.
    """
    cheapest = int(cost.argmin())
    steps = [(gain / extra, share[k] * extra) for k, row in enumerate(accuracy) for extra, gain in _hull(cost, row)]
    best, room = float(share @ accuracy[:, cheapest]), limit - float(cost[cheapest])
    for slope, extra in sorted(steps, reverse=True):
        paid = min(extra, room)
        best, room = best + float(slope * paid), room - float(paid)
    return best


def _hull(cost: Floats, accuracy: Floats) -> list[tuple[float, float]]:
    """Steps (extra cost, gain) of falling slope from the cheapest setting to the best one."""
    at, steps = int(cost.argmin()), list[tuple[float, float]]()
    while (dearer := np.flatnonzero((cost > cost[at]) & (accuracy > accuracy[at]))).size:
        slopes = (accuracy[dearer] - accuracy[at]) / (cost[dearer] - cost[at])
        following = int(dearer[slopes.argmax()])
        steps.append((float(cost[following] - cost[at]), float(accuracy[following] - accuracy[at])))
        at = following
    return steps
