"""Lagrange multipliers: the price of latency under each budget, learned while training or fitted afterwards."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_BISECTIONS = 40


class Multipliers:
    """A price of latency for each of some budgets, interpolated in between and constant beyond them.

    Args:
        fractions: the budgets, as fractions of ``full``; repeats are dropped.

    Attributes:
        fractions: ascending, length B.
        values: price of exceeding each budget by all of itself, in units of the score, length B.
    """

    def __init__(self, fractions: Sequence[float]) -> None:
        self.fractions = sorted(set(fractions))
        self.values = [0.0] * len(self.fractions)

    def at(self, fraction: float) -> float:
        """The multiplier of any budget; 0 if there are none."""
        if not self.fractions:
            return 0.0
        right = bisect_left(self.fractions, fraction)
        if right in (0, len(self.fractions)):
            return self.values[min(right, len(self.values) - 1)]
        low, high = self.fractions[right - 1 : right + 1]
        share = (fraction - low) / (high - low)
        return (1 - share) * self.values[right - 1] + share * self.values[right]

    def ascend(self, latencies: Sequence[float], rate: float) -> None:
        """One step of dual ascent: ``m <- max(0, m + rate * (latency / limit - 1))``.

        Args:
            latencies: mean latency of the present policy under each budget, as fractions of ``full``, length B.
            rate: step size.
        """
        pairs = zip(self.values, latencies, self.fractions, strict=True)
        self.values = [max(0.0, value + rate * (latency / limit - 1)) for value, latency, limit in pairs]

    def fit(self, scores: Sequence[Tensor], latency_means: Tensor, *, margin: float, lowest: float) -> None:
        """Set each to the smallest under which the best-scored settings keep the budget on average.

        Args:
            scores: for each of the B budgets the score of each setting for each request without regard to latency,
                shape [N, S].
            latency_means: fractions of ``full``, shape [S].
            margin: share of each budget that is left free.
            lowest: smallest allowed: 0, or below it to spend what the scores alone would leave of a budget.
        """
        targets = [limit * (1 - margin) for limit in self.fractions]
        self.values = [
            _smallest(each, latency_means, limit, target, lowest)
            for limit, target, each in zip(self.fractions, targets, scores, strict=True)
        ]

    def state(self) -> dict[str, Tensor]:
        """Fractions and values, float64 of shape [B]."""
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("fractions", "values")}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        self.fractions, self.values = state["fractions"].tolist(), state["values"].tolist()


def penalised(scores: Tensor, multiplier: Tensor | float, latency_means: Tensor, limit: float) -> Tensor:
    """Scores less the price of latency, ``scores - multiplier * latency_means / limit``, shape [..., S]."""
    return scores - (multiplier / limit) * latency_means


def _smallest(scores: Tensor, latency_means: Tensor, limit: float, target: float, lowest: float) -> float:
    """Smallest multiplier m >= ``lowest`` whose choices cost at most ``target`` on average.

    The cost falls as m rises; bisection over ``m / (1 + |m|)``, which maps all numbers to (-1, 1).
    """

    def mean_latency(multiplier: float) -> float:
        choices = penalised(scores, multiplier, latency_means, limit).argmax(dim=-1)
        return float(latency_means[choices].mean())

    if mean_latency(lowest) <= target:
        return lowest
    low, high = lowest / (1 + abs(lowest)), 1 - 1e-9
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if mean_latency(middle / (1 - abs(middle))) <= target:
            high = middle
        else:
            low = middle
    return high / (1 - abs(high))
