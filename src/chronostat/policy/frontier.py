"""From scores to choices that keep a budget: a price of latency for means, a price of being late for deadlines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from chronostat.evidence.latency import Forecast
from chronostat.evidence.linear import Flags, Floats, Indices
from chronostat.policy.scorers import Scorer, scores_by_budget
from chronostat.records import Budget

POINTS = 32  # budgets for which a price is found
_DEADLINES = 64  # deadlines likewise; more, since of two neighbours the dearer price counts
_BISECTIONS = 20
_HALF = 0.5  # probability to be late below which a request can meet a deadline
NO_COIN = 1.0  # falls on no side that may be late more often
_TIE = 1e-9  # of quality for all of a latency: of settings that score alike the faster one is taken


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Requests of the kind to come; they need not have been executed.

    Attributes:
        prompts: features, shape [N, 1 + F].
        tokens: image and text tokens under each setting, shape [N, S, 2].
    """

    prompts: Floats
    tokens: Floats


def best(scores: Floats, cost: Floats, price: float, latency: Floats) -> Indices:
    """The setting of highest score less the price of a cost, the faster one of equals: [N, S] each -> [N]."""
    return (scores - price * cost - _TIE * latency).argmax(axis=1)


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Prices of latency with what the choices under each cost, from the cheapest to the dearest.

    Attributes:
        fractions: budget at which the scores of a point are taken, shape [B].
        prices: in units of the score for the latency of ``full``, shape [B].
        costs: mean latency of the choices over the requests that it was made for, ascending, shape [B].
    """

    fractions: Floats
    prices: Floats
    costs: Floats

    @classmethod
    def of(cls, scorer: Scorer, forecast: Forecast, requests: Requests, legal: Flags) -> "Frontier":
        """Find for each of ``POINTS`` budgets the smallest price under which its choices keep it.

        Args:
            scorer: values settings.
            forecast: of their latencies.
            requests: that the mean is over.
            legal: settings that may be chosen, bool of shape [S].
        """
        latency = forecast.mean(requests.prompts, requests.tokens)[:, legal]
        fractions = np.geomspace(latency.min(axis=1).mean(), latency.max(axis=1).mean(), POINTS)
        scores_at = scores_by_budget(scorer, requests.prompts)
        found = [
            smallest_price(scores_at(_mean(fraction))[:, legal], latency, fraction, latency, scorer.lowest_price)[:2]
            for fraction in fractions.tolist()
        ]
        prices, costs = np.array(found).T
        return cls(fractions=fractions, prices=prices, costs=np.maximum.accumulate(costs))

    def at(self, fraction: float) -> tuple[int, int, float]:
        """Two neighbouring points, and the share of requests for the dearer one, so that the mean is a fraction."""
        dearer = int(np.searchsorted(self.costs, fraction))
        if dearer in (0, len(self.costs)):
            end = min(dearer, len(self.costs) - 1)
            return end, end, 1.0
        cheaper = dearer - 1
        return cheaper, dearer, float((fraction - self.costs[cheaper]) / (self.costs[dearer] - self.costs[cheaper]))

    def point(self, fraction: float, coin: float) -> int:
        """The point for a request under a mean budget; ``coin`` is uniform in [0, 1)."""
        cheaper, dearer, share = self.at(fraction)
        return dearer if coin < share else cheaper

    def choices(self, point: int, scores_at: Callable[[Budget], Floats], latency: Floats) -> Indices:
        """What is chosen at a point: scores under a budget (minus infinity: illegal), latency, [N, S] each -> [N]."""
        return best(scores_at(_mean(float(self.fractions[point]))), latency, float(self.prices[point]), latency)

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        return dict(vars(self))

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> "Frontier":
        """From what ``state`` gave."""
        return cls(**state)


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Prices of being late, so that as many requests as may be are late, on average over requests.

    A request whose answer is worth it takes a setting that is late more often than one in twenty, another one a setting
    that is hardly ever late. Requests that are alike change their setting at the same price, all at once, so a coin
    decides which of them pay the next lower price.

    Attributes:
        fractions: deadlines, ascending from the tightest that can be kept, shape [B].
        prices: in units of the score for being late for sure, shape [B].
        lower: the largest prices at which too many are late, shape [B].
        shares: of the requests that pay these, so that as many are late as may be, shape [B].
    """

    fractions: Floats
    prices: Floats
    lower: Floats
    shares: Floats

    @classmethod
    def of(cls, scorer: Scorer, forecast: Forecast, requests: Requests, legal: Flags) -> "Deadlines":
        """Find the price for each of ``_DEADLINES`` deadlines; arguments as of ``Frontier.of``."""
        latency = forecast.mean(requests.prompts, requests.tokens)[:, legal]
        tightest = _tightest(forecast, requests, legal)
        fractions = np.geomspace(tightest, max(2.0 * float(latency.max()), tightest), _DEADLINES)
        scores_at = scores_by_budget(scorer, requests.prompts)
        late_at = forecast.lateness(requests.prompts, requests.tokens)
        found: list[Price] = []
        for fraction in fractions.tolist():
            late = late_at(fraction)[:, legal]
            can = can_meet(late)
            scores = scores_at(_deadline(fraction))[:, legal]
            found.append(smallest_price(scores[can], late[can], forecast.allowed, latency[can], 0.0))
        return cls(
            fractions=fractions,
            prices=np.array([price.price for price in found]),
            lower=np.array([price.lower for price in found]),
            shares=np.array([price.share_of_lower(forecast.allowed) for price in found]),
        )

    def share(self, fraction: float) -> float:
        """Of the requests under any deadline that pay the lower price."""
        return float(self.shares[self._nearest(fraction)])

    def _nearest(self, fraction: float) -> int:
        """Which prices are those of any deadline: the dearer ones of its two neighbours'.

        Which settings are in time changes at once where a deadline passes one of them, and the price with it; one in
        between is too low as often as not.
        """
        tighter = int(np.searchsorted(self.fractions, fraction, side="right")) - 1
        looser = int(np.searchsorted(self.fractions, fraction))
        first = max(tighter, 0)
        return first + int(self.prices[first : looser + 1].argmax())

    def choices(self, fraction: float, scores: Floats, late: Floats, latency: Floats, coin: float) -> Indices:
        """What is chosen under a deadline: scores, probabilities to be late and mean latencies, [N, S] each -> [N].

        ``coin`` is uniform in [0, 1); with ``NO_COIN`` nobody pays the lower price. Scores of minus infinity are of
        settings that may not be chosen. A request that none brings in time gets the fastest one.
        """
        legal = np.isfinite(scores)
        fastest = np.where(legal, latency, np.inf).argmin(axis=1)
        in_time = np.where(legal, late, 1.0).min(axis=1) < _HALF
        nearest = self._nearest(fraction)
        price = float(self.lower[nearest] if coin < self.shares[nearest] else self.prices[nearest])
        return np.where(in_time, best(scores, late, price, latency), fastest)

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        return dict(vars(self))

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> "Deadlines":
        """From what ``state`` gave; before there was a coin it gave no lower prices."""
        return cls(**{"lower": state["prices"], "shares": np.zeros_like(state["prices"]), **state})


def _mean(fraction: float) -> Budget:
    return Budget(kind="mean", fraction=fraction)


def _deadline(fraction: float) -> Budget:
    return Budget(kind="deadline", fraction=fraction)


def can_meet(late: Floats) -> Flags:
    """Requests that some setting brings in time more often than not: probabilities [N, S] -> bool [N].

    The others are late whatever is chosen, so they say nothing about a choice; where there is no such request, all of
    them count.
    """
    can = late.min(axis=1) < _HALF
    return can if can.any() else ~can


def _tightest(forecast: Forecast, requests: Requests, legal: Flags) -> float:
    """The deadline that half of the requests just can meet, by what is likeliest.

    Whether 95 % of them will keep it is for the verdict to say: on a restless machine a deadline that is often missed
    is tried with the fastest setting, not refused.
    """
    latency = forecast.mean(requests.prompts, requests.tokens)[:, legal]
    late_at = forecast.lateness(requests.prompts, requests.tokens, doubt=0.0)
    low, high = 0.1 * float(latency.min()), 10 * float(latency.max())
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        late = late_at(middle)[:, legal]
        low, high = (low, middle) if np.median(late.min(axis=1)) < _HALF else (middle, high)
    return high


class Price(NamedTuple):
    """The smallest price at which choices cost no more than a limit, and the largest one at which they cost more.

    Attributes:
        price: the first.
        cost: of the choices at it.
        lower: the second; where nothing costs more, the first again.
        lower_cost: of the choices at that.
    """

    price: float
    cost: float
    lower: float
    lower_cost: float

    def share_of_lower(self, limit: float) -> float:
        """Share of the requests that pay the lower price, so that all together cost the limit."""
        return max(limit - self.cost, 0.0) / (self.lower_cost - self.cost) if self.lower_cost > self.cost else 0.0


def smallest_price(scores: Floats, cost: Floats, limit: float, latency: Floats, lowest: float) -> Price:
    """Smallest price from ``lowest`` on whose choices cost at most a limit on average.

    The cost falls as the price p rises; bisection over ``p / (1 + |p|)``, which maps all numbers to (-1, 1).

    Args:
        scores: shape [N, S].
        cost: shape [N, S].
        limit: of the mean cost.
        latency: of equals the faster is chosen, shape [N, S].
        lowest: 0, or below it where the scores alone would leave some of a budget.
    """
    rows = np.arange(len(scores))

    def cost_at(price: float) -> float:
        return float(cost[rows, best(scores, cost, price, latency)].mean())

    if (free := cost_at(lowest)) <= limit:
        return Price(lowest, free, lowest, free)
    low, high = lowest / (1 + abs(lowest)), 1 - 1e-9
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost_at(middle / (1 - abs(middle))) <= limit else (middle, high)
    price, lower = high / (1 - abs(high)), low / (1 - abs(low))
    return Price(price, cost_at(price), lower, cost_at(lower))
