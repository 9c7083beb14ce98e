"""Scores of whatever origin, held to budgets by the same prices as the controller's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from chronostat.evidence.latency import Forecast
from chronostat.evidence.linear import Flags, Floats, Indices
from chronostat.policy.frontier import Deadlines, Frontier, Requests
from chronostat.records import Budget


@dataclass(frozen=True)
class _Given:
    """Scores of the requests that prices are found on.

    Attributes:
        of_requests: shape [N, S].
    """

    lowest_price: ClassVar[float] = 0.0
    knows_budget: ClassVar[bool] = False
    of_requests: Floats

    def scores(self, prompts: Floats, budget: Budget) -> Floats:
        """See ``Scorer``."""
        assert len(prompts) == len(self.of_requests), "scores are those of these requests alone"
        return self.of_requests

    def state(self) -> dict[str, Floats]:
        """See ``Scorer``."""
        return {"of_requests": self.of_requests}

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> Self:
        """See ``Scorer``."""
        return cls(**state)


@dataclass(frozen=True, kw_only=True)
class Priced:
    """Chooses by scores that are given with each request.

    Attributes:
        forecast: of latencies.
        legal: settings that may be chosen, bool of shape [S].
        margin: share of each mean budget left free.
        frontier: prices under mean budgets.
        deadlines: prices under deadlines.
    """

    forecast: Forecast
    legal: Flags
    margin: float
    frontier: Frontier
    deadlines: Deadlines

    @classmethod
    def of(cls, scores: Floats, forecast: Forecast, requests: Requests, legal: Flags, margin: float) -> "Priced":
        """Find the prices on N requests, whose scores are [N, S]."""
        scorer = _Given(scores)
        return cls(
            forecast=forecast,
            legal=legal,
            margin=margin,
            frontier=Frontier.of(scorer, forecast, requests, legal),
            deadlines=Deadlines.of(scorer, forecast, requests, legal),
        )

    def choices(self, scores: Floats, requests: Requests, budget: Budget, coin: float) -> Indices:
        """A setting for each request, [N]; scores [N, S]; ``coin`` as of ``Policy.decide``."""
        prompts, tokens = requests.prompts, requests.tokens
        latency = self.forecast.mean(prompts, tokens)
        scores = np.where(self.legal, scores, -np.inf)
        if budget.kind == "deadline":
            late = self.forecast.late(prompts, tokens, budget.fraction)
            return self.deadlines.choices(budget.fraction, scores, late, latency, coin)
        point = self.frontier.point(budget.fraction * (1 - self.margin), coin)
        return self.frontier.choices(point, lambda _: scores, latency)
