"""How good is a policy in truth? Its choices for the requests that are judged, valued without chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.learners.world import World
from chronostat.evidence.linear import Indices
from chronostat.policy.frontier import Deadlines, Frontier
from chronostat.policy.policy import Policy
from chronostat.records import Budget

_LAST_COIN = float(np.nextafter(1.0, 0.0))


@dataclass(frozen=True)
class Played:
    """What a policy chooses for each prompt, and for which share of the requests; shape [P]."""

    share: float
    settings: Indices


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The truth about a policy under a budget.

    Attributes:
        accuracy: expected.
        spent: under a mean budget expected latency as a share of it, under a deadline the share of requests within.
        learned: whether it looks at the request.
    """

    accuracy: float
    spent: float
    learned: bool


def verdict(world: World, budget: Budget, played: Sequence[Played], learned: bool) -> Verdict:
    """The truth about what was played."""
    prompts = np.arange(len(world.weight))
    spent_by_setting = world.mean_cost / budget.fraction if budget.kind == "mean" else world.within(budget.fraction)
    accuracy = sum(part.share * world.right[prompts, part.settings].sum() for part in played)
    spent = sum(part.share * world.weight @ spent_by_setting[part.settings] for part in played)
    return Verdict(accuracy=float(accuracy), spent=float(spent), learned=learned)


def judge(world: World, policy: Policy, budget: Budget) -> Verdict:
    """The truth about a frozen policy."""
    learned = policy.gains[budget.kind].is_learned(budget.fraction)

    def chosen(coin: float) -> Indices:
        return np.array([policy.decide(each, budget, coin) for each in world.table.observations], dtype=np.intp)

    arm = "learned" if learned else "plain"
    share = share_of_first(policy.frontiers[arm], policy.deadlines[arm], budget, policy.margin)
    return verdict(world, budget, by_coin(share, chosen), learned)


def share_of_first(frontier: Frontier, deadlines: Deadlines, budget: Budget, margin: float) -> float:
    """Share of the requests whose coin falls on the side that may take longer."""
    if budget.kind == "deadline":
        return deadlines.share(budget.fraction)
    return frontier.at(budget.fraction * (1 - margin))[2]


def by_coin(share: float, chosen: Callable[[float], Indices]) -> list[Played]:
    """Both sides of the coin between neighbouring prices, from what is chosen at a coin."""
    sides = [(share, 0.0), (1 - share, _LAST_COIN)]
    return [Played(weight, chosen(coin)) for weight, coin in sides if weight > 0]
