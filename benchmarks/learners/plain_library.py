"""What does a plain library make of the same executions? Its scores in a world, held to budgets by the same prices."""

import numpy as np

from benchmarks.learners.judge import Verdict, by_coin, share_of_first, verdict
from benchmarks.learners.replay import Trained
from benchmarks.learners.world import World
from chronostat.evidence.linear import Floats, Indices
from chronostat.policy.frontier import Requests
from chronostat.policy.priced import Priced
from chronostat.records import Budget
from chronostat.validation.beside.plain_library import PlainLibrary


class Follower:
    """A plain library that learns from what a run executes.

    Args:
        world: that the run executes in.
    """

    def __init__(self, world: World) -> None:
        self._texts = world.table.texts
        self._library = PlainLibrary(world.table.space)
        self._known = 0

    def scores(self, trained: Trained) -> Floats:
        """Of the prompts, after all that the run has executed so far; shape [P, S]."""
        for executed in trained.executed[self._known :]:
            text = self._texts[executed.prompt]
            self._library.learn(text, executed.settings, executed.probabilities, executed.quality)
        self._known = len(trained.executed)
        return self._library.scores(self._texts)


class PricedScores:
    """Scores of settings for prompts, held to budgets by the product's prices.

    Args:
        world: whose requests are judged.
        trained: the run whose forecast of latencies and unseen requests prices are found with.
        scores: of the prompts, shape [P, S].
        margin: share of each mean budget left free.
    """

    def __init__(self, world: World, trained: Trained, scores: Floats, margin: float) -> None:
        evidence, legal = trained.evidence, np.ones(scores.shape[1], dtype=np.bool_)
        unseen = Requests(prompts=evidence.prompts, tokens=evidence.tokens)
        self._priced = Priced.of(scores[trained.unseen], evidence.forecast(), unseen, legal, margin)
        seen = world.table.observations
        self._requests = Requests(
            prompts=evidence.features(np.stack([each.prompt for each in seen])),
            tokens=np.stack([each.tokens for each in seen]),
        )
        self._world, self._scores = world, scores

    def judge(self, budget: Budget) -> Verdict:
        """The truth about what they choose."""

        def choose(coin: float) -> Indices:
            return self._priced.choices(self._scores, self._requests, budget, coin)

        priced = self._priced
        share = share_of_first(priced.frontier, priced.deadlines, budget, priced.margin)
        return verdict(self._world, budget, by_coin(share, choose), learned=True)
