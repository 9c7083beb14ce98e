"""The direct learner: know the quality of every setting, then take the best that the budget can pay."""

from collections.abc import Sequence

import numpy as np

from chronostat.config import Config
from chronostat.control.learners.base import Learner, Outcome, Proposal
from chronostat.evidence.evidence import Evidence
from chronostat.evidence.linear import Indices
from chronostat.evidence.observation import Observation
from chronostat.evidence.quality import predicted
from chronostat.knobs.space import ActionSpace
from chronostat.policy.frontier import NO_COIN, Deadlines, Frontier, Requests, best
from chronostat.policy.scorers import QualityScorer
from chronostat.records import Budget

_RENEWED_EVERY = 8  # outcomes after which what may be true is drawn anew
_PRICED_ON = 256  # unseen requests that prices of the training are found on


class DirectLearner(Learner):
    """Chooses ``argmax quality(request, setting) - price * latency(request, setting)``; see ``QualityModel``.

    Training explores as Thompson (1933) did: each draw follows one of M draws of what may be true, at the price of its
    budget. All budgets learn from one model of quality. The probability of a setting is the share of the M that choose
    it.
    """

    def __init__(
        self, space: ActionSpace, evidence: Evidence, config: Config, budgets: Sequence[Budget], seed: int
    ) -> None:
        self._evidence = evidence
        self._members = config.direct.members
        self._legal = np.ones(len(space), dtype=np.bool_)
        self._seed = seed
        self._version = -1
        self._outcomes = 0
        self._renew()

    def _renew(self) -> None:
        """Draw what may be true; find the order of settings and the prices anew if strengths were fitted since."""
        self._version += 1
        self._evidence.update()
        rng = np.random.default_rng([self._seed, self._version])
        self._draws = self._evidence.quality.draws(rng, self._members)
        if self._version == 0 or self._fitted != self._evidence.version:
            self._price()

    def _price(self) -> None:
        evidence = self._evidence
        self._fitted, self._order, self._forecast = evidence.version, evidence.order(), evidence.forecast()
        priced = Requests(prompts=evidence.prompts[:_PRICED_ON], tokens=evidence.tokens[:_PRICED_ON])
        self._frontier = Frontier.of(self.scorer(), self._forecast, priced, self._legal)
        self._deadlines = Deadlines.of(self.scorer(), self._forecast, priced, self._legal)

    def propose(self, observation: Observation, budget: Budget, draws: int, rng: np.random.Generator) -> Proposal:
        """For each draw one view of what may be true; see ``Learner``."""
        chosen = self._chosen(observation, budget)  # [M]
        settings = chosen[rng.integers(len(chosen), size=draws)]
        shares = np.bincount(chosen, minlength=len(self._legal)) / len(chosen)
        return Proposal(settings=settings, probabilities=shares[settings], version=self._version)

    def _chosen(self, observation: Observation, budget: Budget) -> Indices:
        """By each of the M, shape [M]."""
        prompt, tokens = self._evidence.features(observation.prompt[None]), observation.tokens[None]
        scores = np.where(self._legal, predicted(prompt, self._draws, self._order)[:, 0], -np.inf)
        latency = self._forecast.mean(prompt, tokens)
        if budget.kind == "deadline":
            limit = max(budget.fraction, float(self._deadlines.fractions[0]))
            late = self._forecast.late(prompt, tokens, limit)
            return self._deadlines.choices(limit, scores, late, latency, NO_COIN)
        point = self._frontier.point(budget.fraction, 0.5)
        return best(scores, latency, float(self._frontier.prices[point]), latency)

    def learn(self, outcome: Outcome) -> dict[str, float]:
        """Draw what may be true anew now and then; the evidence has learned already; see ``Learner``."""
        self._outcomes += 1
        if self._evidence.version != self._fitted or self._outcomes % _RENEWED_EVERY == 0:
            self._renew()
        return {"answers": float(self._evidence.quality.count)}

    def take_out(self, settings: Sequence[int]) -> None:
        """Mask them in choices; see ``Learner``."""
        self._legal[list(settings)] = False

    def finish(self) -> None:
        """Fit the evidence to everything; see ``Learner``."""
        self._evidence.fit()
        self._order = self._evidence.order()

    def scorer(self) -> QualityScorer:
        """Expected quality; see ``Learner``."""
        return QualityScorer(by_setting=self._evidence.quality.mean(), order=self._order)
