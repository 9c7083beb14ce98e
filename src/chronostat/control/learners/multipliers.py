"""Lagrange multipliers: the price of latency under each budget, learned while training."""

from bisect import bisect_left
from collections.abc import Sequence


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
