"""Rewards by name: what a measured execution is worth under a budget.

A new reward is one function, one line in ``REWARDS`` with its price, and its name in ``RewardConfig``. All of them take
tensors that broadcast against each other: quality in [0, 1], latency and limit as fractions of the latency of ``full``,
and the budget's Lagrange multiplier.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from chronostat.config import RewardConfig
from chronostat.records import BudgetKind


class RewardFunction(Protocol):
    """The type of a reward's value."""

    def __call__(
        self, quality: Tensor, latency: Tensor, limit: Tensor, multiplier: Tensor, config: RewardConfig
    ) -> Tensor:
        """Reward of each execution, in the shape that the arguments broadcast to.

        Args:
            quality: score of the answer in [0, 1].
            latency: measured latency with the controller's own, as a fraction of ``full``.
            limit: the budget, as a fraction of ``full``.
            multiplier: price of exceeding the limit by all of itself, in units of quality.
            config: exponents and penalties.
        """
        ...


def lagrange(quality: Tensor, latency: Tensor, limit: Tensor, multiplier: Tensor, config: RewardConfig) -> Tensor:
    """``quality - multiplier * (latency / limit - 1)``, for limits that hold on average.

    The Lagrangian of "most quality with mean latency <= limit" (Altman, Constrained Markov Decision Processes, 1999).
    The multiplier of each budget rises while the policy exceeds it and falls while it does not: dual ascent, see
    ``chronostat.control.learners.multipliers``.
    """
    return quality - multiplier * (latency / limit - 1)


def overshoot(quality: Tensor, latency: Tensor, limit: Tensor, multiplier: Tensor, config: RewardConfig) -> Tensor:
    """``quality - overshoot_penalty * max(0, latency / limit - 1)``, for limits that each request must keep.

    An exact (hinge) penalty (Nocedal and Wright, Numerical Optimization, 2006, section 17.2). A deadline holds if at
    least 95 % of the requests keep it; each one above it is punished by how far it is above, none is paid for being
    far below.
    """
    return quality - config.overshoot_penalty * (latency / limit - 1).clamp(min=0)


def mnasnet(quality: Tensor, latency: Tensor, limit: Tensor, multiplier: Tensor, config: RewardConfig) -> Tensor:
    """``quality * (latency / limit) ** w`` with w <= 0 (Tan et al., MnasNet, CVPR 2019, equation 2 with alpha = beta).

    Soft on both sides: it pays for being faster than the limit and does not hold a policy to it.
    """
    return quality * (latency / limit) ** config.mnasnet_exponent


@dataclass(frozen=True)
class Reward:
    """A reward with its price.

    Attributes:
        value: of each execution.
        price: what exceeding a limit by all of itself costs, in units of quality, shape [B], given the Lagrange
            multipliers of the budgets, shape [B].
    """

    value: RewardFunction
    price: Callable[[Tensor, RewardConfig], Tensor]


REWARDS: dict[str, Reward] = {
    "lagrange": Reward(lagrange, lambda multiplier, config: multiplier),
    "overshoot": Reward(overshoot, lambda multiplier, config: torch.full_like(multiplier, config.overshoot_penalty)),
    "mnasnet": Reward(mnasnet, lambda multiplier, config: torch.zeros_like(multiplier)),  # no more than the quality
}


def reward_for(kind: BudgetKind, config: RewardConfig) -> Reward:
    """The reward that the configuration names for a kind of budget."""
    return REWARDS[config.mean if kind == "mean" else config.deadline]
