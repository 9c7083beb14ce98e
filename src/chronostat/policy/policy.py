"""A frozen policy: from an observation and a budget to a setting."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Literal

import numpy as np

from chronostat.errors import BudgetError
from chronostat.evidence.features import PromptFeatures
from chronostat.evidence.latency import Forecast
from chronostat.evidence.linear import Flags, Floats, Indices
from chronostat.evidence.observation import Observation
from chronostat.policy.frontier import NO_COIN, POINTS, Deadlines, Frontier, Requests
from chronostat.policy.scorers import QualityScorer, Scorer, restored_scorer, scores_by_budget
from chronostat.records import Budget, BudgetKind

_DOUBT = 0.05  # share of what may be true under which the learned policy may be no better than the plain one

Arm = Literal["learned", "plain"]


class TooTightError(BudgetError):
    """No setting can meet a budget.

    Attributes:
        cheapest: the tightest budget of this kind that some setting can meet, as a fraction of ``full``.
    """

    def __init__(self, budget: Budget, cheapest: float) -> None:
        self.cheapest = cheapest
        super().__init__(
            f"no setting can meet the budget {budget.kind} {budget.fraction:.4g} of full; the cheapest needs "
            f"{ceil(cheapest * 1e4) / 1e4:.4f} of full, ask for at least that"
        )


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Where the evidence says that looking at the request helps.

    Attributes:
        fractions: budgets, ascending, shape [B].
        least: what the learned policy gains at least over the one that treats all requests alike, in quality, with
            95 % probability, shape [B].
    """

    fractions: Floats
    least: Floats

    def is_learned(self, fraction: float) -> bool:
        """Whether the learned policy is played at a budget: by the nearest one that is no looser."""
        index = max(int(np.searchsorted(self.fractions, fraction, side="right")) - 1, 0)
        return bool(self.least[index] > 0)

    @property
    def learned_share(self) -> float:
        """Share of the budgets at which it is."""
        return float((self.least > 0).mean())


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Chooses settings; nothing is learned any more.

    Two ways of choosing, each with its prices: ``learned`` values the settings for the request, ``plain`` by what they
    are worth to all requests on average, which under a mean budget is the best static mix. The learned one is played
    where the evidence says that it is better.

    Attributes:
        learner: name of what made the learned scores.
        features: of prompts.
        scorers: of both ways.
        forecast: of latencies.
        requests: that prices were found on.
        draws: quality of settings as it may still be, from features of a prompt, shape [K, 1 + F, S].
        legal: settings that may be chosen, bool of shape [S].
        margin: share of each mean budget left free.
        frontiers: prices under mean budgets, of both ways.
        deadlines: prices under deadlines, of both ways.
        gains: by kind of budget.
    """

    learner: str
    features: PromptFeatures
    scorers: Mapping[Arm, Scorer]
    forecast: Forecast
    requests: Requests
    draws: Floats
    legal: Flags
    margin: float
    frontiers: Mapping[Arm, Frontier]
    deadlines: Mapping[Arm, Deadlines]
    gains: Mapping[BudgetKind, Gains]

    @classmethod
    def of(
        cls,
        learner: str,
        features: PromptFeatures,
        scorers: Mapping[Arm, Scorer],
        forecast: Forecast,
        requests: Requests,
        draws: Floats,
        legal: Flags,
        margin: float,
    ) -> "Policy":
        """Find the prices, and where the learned way is better; see the attributes."""
        policy = cls(
            learner=learner,
            features=features,
            scorers=scorers,
            forecast=forecast,
            requests=requests,
            draws=draws,
            legal=legal,
            margin=margin,
            frontiers={arm: Frontier.of(scorer, forecast, requests, legal) for arm, scorer in scorers.items()},
            deadlines={arm: Deadlines.of(scorer, forecast, requests, legal) for arm, scorer in scorers.items()},
            gains={},
        )
        return replace(policy, gains={"mean": policy._mean_gains(), "deadline": policy._deadline_gains()})

    def renewed(self, forecast: Forecast, legal: Flags) -> "Policy":
        """The same knowledge of quality, held to budgets by another forecast; prices are found anew."""
        return Policy.of(
            self.learner,
            self.features,
            self.scorers,
            forecast,
            self.requests,
            self.draws,
            legal,
            self.margin,
        )

    @property
    def plain_quality(self) -> Floats:
        """Expected quality of each setting over requests, shape [S]."""
        budget = Budget(kind="mean", fraction=1.0)
        return self.scorers["plain"].scores(np.eye(1, self.requests.prompts.shape[1]), budget)[0]

    def decide(self, observation: Observation, budget: Budget, coin: float) -> int:
        """The setting for a request.

        Args:
            observation: what is seen of it.
            budget: of either kind.
            coin: uniform in [0, 1); settles which of two neighbouring prices this request pays.

        Returns:
            Position in the space.

        Raises:
            TooTightError: no setting can meet the budget.
        """
        if budget.fraction < (cheapest := self.cheapest(budget.kind)):
            raise TooTightError(budget, cheapest)
        one = Requests(prompts=self.features(observation.prompt[None]), tokens=observation.tokens[None])
        arm: Arm = "learned" if self.gains[budget.kind].is_learned(budget.fraction) else "plain"
        scores_at = self._legal_scores(partial(self.scorers[arm].scores, one.prompts))
        latency = self.forecast.mean(one.prompts, one.tokens)
        if budget.kind == "deadline":
            late = self.forecast.late(one.prompts, one.tokens, budget.fraction)
            return int(self.deadlines[arm].choices(budget.fraction, scores_at(budget), late, latency, coin)[0])
        frontier = self.frontiers[arm]
        point = frontier.point(budget.fraction * (1 - self.margin), coin)
        return int(frontier.choices(point, scores_at, latency)[0])

    def fastest(self, observation: Observation) -> int:
        """Position of the setting that is forecast to take least for a request."""
        prompts = self.features(observation.prompt[None])
        latency = self.forecast.mean(prompts, observation.tokens[None])[0]
        return int(np.where(self.legal, latency, np.inf).argmin())

    def typical(self, observation: Observation, position: int) -> float:
        """Half of the executions of a request under a setting are forecast to take less, as a fraction of ``full``."""
        one = self.forecast.logarithm(self.features(observation.prompt[None]), observation.tokens[None])
        return float(np.exp(one[0, position])) + self.forecast.controller

    def cheapest(self, kind: BudgetKind) -> float:
        """The tightest budget of a kind that can be kept, as a fraction of ``full``."""
        if kind == "deadline":
            return float(self.deadlines["plain"].fractions[0])
        return float(self.frontiers["plain"].costs[0]) / (1 - self.margin)

    def _legal_scores(self, scores_at: Callable[[Budget], Floats]) -> Callable[[Budget], Floats]:
        return lambda budget: np.where(self.legal, scores_at(budget), -np.inf)

    def _scores(self, arm: Arm) -> Callable[[Budget], Floats]:
        """Of the requests that prices were found on."""
        return self._legal_scores(scores_by_budget(self.scorers[arm], self.requests.prompts))

    def _mean_gains(self) -> Gains:
        """At the budgets that prices were found for, not only where the plain policy needs no coin."""
        fractions = self.frontiers["plain"].fractions
        values = {arm: self._values_at(arm, fractions) for arm in self.scorers}
        return Gains(fractions=fractions, least=np.quantile(values["learned"] - values["plain"], _DOUBT, axis=0))

    def _values_at(self, arm: Arm, fractions: Floats) -> Floats:
        """Mean quality at mean budgets as it may be, shape [K, B]."""
        frontier, scores_at = self.frontiers[arm], self._scores(arm)
        latency = self.forecast.mean(self.requests.prompts, self.requests.tokens)
        chosen = [frontier.choices(point, scores_at, latency) for point in range(POINTS)]
        values = np.stack([self._values(each) for each in chosen], axis=1)
        mixed = [frontier.at(float(fraction)) for fraction in fractions]
        return np.stack([(1 - share) * values[:, low] + share * values[:, high] for low, high, share in mixed], axis=1)

    def _deadline_gains(self) -> Gains:
        fractions = self.deadlines["plain"].fractions
        scores_at = {arm: self._scores(arm) for arm in self.scorers}
        latency = self.forecast.mean(self.requests.prompts, self.requests.tokens)
        late_at = self.forecast.lateness(self.requests.prompts, self.requests.tokens)
        least: list[float] = []
        for limit in fractions.tolist():
            late, budget = late_at(limit), Budget(kind="deadline", fraction=limit)
            values = {
                arm: self._deadline_values(arm, limit, scores_at[arm](budget), late, latency) for arm in self.scorers
            }
            least.append(float(np.quantile(values["learned"] - values["plain"], _DOUBT)))
        return Gains(fractions=fractions, least=np.array(least))

    def _deadline_values(self, arm: Arm, limit: float, scores: Floats, late: Floats, latency: Floats) -> Floats:
        """Mean quality under a deadline as it may be, by the toss of the coin, shape [K]."""
        deadlines = self.deadlines[arm]
        share = deadlines.share(limit)
        sides = ((1 - share, NO_COIN), (share, 0.0))
        return sum(
            (
                weight * self._values(deadlines.choices(limit, scores, late, latency, coin))
                for weight, coin in sides
                if weight
            ),
            start=np.zeros(len(self.draws)),
        )

    def _values(self, chosen: Indices) -> Floats:
        """Mean quality of some choices for the requests as it may be: [N] -> [K]."""
        prompts = self.requests.prompts
        weights = np.zeros((len(self.legal), prompts.shape[1]))
        np.add.at(weights, chosen, prompts / len(prompts))
        return np.einsum("kfs,sf->k", self.draws, weights)

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        parts: dict[str, Mapping[str, Floats]] = {
            "features": self.features.state(),
            "forecast": self.forecast.state(),
            "requests": vars(self.requests),
            **{f"scorers.{arm}": scorer.state() for arm, scorer in self.scorers.items()},
            **{f"frontiers.{arm}": frontier.state() for arm, frontier in self.frontiers.items()},
            **{f"deadlines.{arm}": deadlines.state() for arm, deadlines in self.deadlines.items()},
            **{f"gains.{kind}": vars(gains) for kind, gains in self.gains.items()},
        }
        own = {"draws": self.draws, "legal": self.legal.astype(np.float64), "margin": np.array(self.margin)}
        return own | {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}

    @classmethod
    def restored(cls, learner: str, state: Mapping[str, Floats]) -> "Policy":
        """From what ``state`` gave.

        Raises:
            StoreError: no such learner.
            KeyError: an array is missing; a wrong shape raises when it is used.
        """

        def part(prefix: str) -> dict[str, Floats]:
            return {n.removeprefix(f"{prefix}."): value for n, value in state.items() if n.startswith(f"{prefix}.")}

        return cls(
            learner=learner,
            features=PromptFeatures.restored(part("features")),
            scorers={
                "learned": restored_scorer(learner, part("scorers.learned")),
                "plain": QualityScorer.restored(part("scorers.plain")),
            },
            forecast=Forecast.restored(part("forecast")),
            requests=Requests(**part("requests")),
            draws=state["draws"],
            legal=state["legal"] > 0,
            margin=float(state["margin"]),
            frontiers={arm: Frontier.restored(part(f"frontiers.{arm}")) for arm in ("learned", "plain")},
            deadlines={arm: Deadlines.restored(part(f"deadlines.{arm}")) for arm in ("learned", "plain")},
            gains={kind: Gains(**part(f"gains.{kind}")) for kind in ("mean", "deadline")},
        )
