"""What does a plain contextual bandit make of the same executions? Vowpal Wabbit's ``cb_explore_adf``.

Its regression of what a setting costs in quality learns from every execution, in order. ``squarecb`` and ``regcb`` are
two ways to explore with that regression; on executions that are given there is nothing to explore, and it is the same
whichever of them is named (``tests/benchmarks/test_learners.py``). Its scores are held to budgets by the same prices as
ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from benchmarks.learners.judge import Played, Verdict, by_coin, verdict
from benchmarks.learners.replay import Executed, Trained
from benchmarks.learners.table import Table
from benchmarks.learners.world import World
from chronostat.evidence.linear import Floats, Indices
from chronostat.policy.frontier import Deadlines, Frontier, Requests
from chronostat.records import Budget

OPTIONS = "--cb_explore_adf --squarecb --cb_type mtr --interactions ps --quiet"


class PlainLibrary:
    """A Vowpal Wabbit workspace that scores settings for prompts.

    Args:
        table: whose prompts and settings they are.
        options: of the workspace.
    """

    def __init__(self, table: Table, options: str = OPTIONS) -> None:
        from vowpalwabbit import Workspace  # the extra `rivals`

        self._workspace: Any = Workspace(options)
        self._learned = 0
        self._contexts = [f"shared |p {' '.join(re.findall('[a-z0-9]+', text.lower()))}" for text in table.texts]
        names = list(table.space.levels)
        rows = [
            [f"{name}_{level}" for name, level in zip(names, row, strict=True)] for row in table.space.level_indices
        ]
        self._actions = [f"|s {' '.join(row)} setting_{i}" for i, row in enumerate(rows)]

    def learn_up_to(self, trained: Trained) -> None:
        """What a run has executed and this has not seen yet, in order."""
        for executed in trained.executed[self._learned :]:
            self.learn(executed)
        self._learned = len(trained.executed)

    def learn(self, executed: Executed) -> None:
        """Each execution of a request, as a draw with its chance."""
        for setting, chance, quality in zip(executed.settings, executed.probabilities, executed.quality, strict=True):
            lines = [self._contexts[executed.prompt], *self._actions]
            lines[1 + setting] = f"{setting}:{1 - quality}:{chance} {lines[1 + setting]}"
            self._workspace.learn(lines)

    def scores(self) -> Floats:
        """How it values settings for each prompt, up to a factor and a constant of the prompt; shape [P, S].

        SquareCB draws a setting a with probability ``1 / (S + g gap(a))``, gap what it is expected to lose against the
        best one and g a number that grows with what was learned; the best one has what is left.
        """
        chances = [self._workspace.predict([context, *self._actions]) for context in self._contexts]
        return np.minimum(len(self._actions) - 1 / np.array(chances), 0.0)

    def weights(self) -> Floats:
        """Of its regression."""
        return np.array([self._workspace.get_weight(i) for i in range(self._workspace.num_weights())])


@dataclass(frozen=True)
class _Known:
    """Scores of given requests.

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
        requests = Requests(prompts=evidence.prompts, tokens=evidence.tokens)
        scorer = _Known(scores[trained.unseen])
        self._world, self._scores, self._margin = world, scores, margin
        self._forecast = evidence.forecast()
        self._frontier = Frontier.of(scorer, self._forecast, requests, legal)
        self._deadlines = Deadlines.of(scorer, self._forecast, requests, legal)
        seen = world.table.observations
        self._prompts = evidence.features(np.stack([each.prompt for each in seen]))
        self._tokens = np.stack([each.tokens for each in seen])

    def judge(self, budget: Budget) -> Verdict:
        """The truth about what they choose."""
        latency = self._forecast.mean(self._prompts, self._tokens)
        if budget.kind == "deadline":
            late = self._forecast.late(self._prompts, self._tokens, budget.fraction)
            chosen = self._deadlines.choices(budget.fraction, self._scores, late, latency)
            return verdict(self._world, budget, [Played(1.0, chosen)], learned=True)
        fraction = budget.fraction * (1 - self._margin)

        def choose(coin: float) -> Indices:
            point = self._frontier.point(fraction, coin)
            return self._frontier.choices(point, lambda _: self._scores, latency)

        return verdict(self._world, budget, by_coin(self._frontier, fraction, choose), learned=True)
