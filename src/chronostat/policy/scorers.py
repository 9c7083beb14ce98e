"""How a frozen policy values the settings for a request, before latency has its price."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, Self

import numpy as np

from chronostat.errors import StoreError
from chronostat.evidence.linear import Flags, Floats
from chronostat.evidence.quality import along, predicted
from chronostat.records import Budget


class Scorer(Protocol):
    """Values settings for requests.

    Attributes:
        lowest_price: of latency; below 0 where the best scores alone may leave some of a budget that buys something.
        knows_budget: whether scores depend on the budget.
    """

    lowest_price: ClassVar[float]
    knows_budget: ClassVar[bool]

    def scores(self, prompts: Floats, budget: Budget) -> Floats:
        """Features [N, 1 + F] -> [N, S]; the higher the better."""
        ...

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        ...

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> Self:
        """From what ``state`` gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class QualityScorer:
    """Expected quality, the same under every budget.

    Attributes:
        by_setting: from features of a prompt to quality, shape [1 + F, S].
        order: whether setting s is taken to be no better than t, bool of shape [S, S].
    """

    lowest_price: ClassVar[float] = 0.0
    knows_budget: ClassVar[bool] = False
    by_setting: Floats
    order: Flags

    @classmethod
    def alike(cls, by_setting: Floats, order: Flags, prompts: Floats) -> "QualityScorer":
        """What is best for all requests alike: mean quality over some prompts, features [N, 1 + F]."""
        plain = np.zeros_like(by_setting)
        plain[0] = along(prompts.mean(axis=0) @ by_setting, order)
        return cls(by_setting=plain, order=np.eye(len(order), dtype=np.bool_))

    def scores(self, prompts: Floats, budget: Budget) -> Floats:
        """Expected quality, [N, 1 + F] -> [N, S]."""
        return predicted(prompts, self.by_setting, self.order)

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        return {"by_setting": self.by_setting, "order": self.order.astype(np.float64)}

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> "QualityScorer":
        """From what ``state`` gave."""
        return cls(by_setting=state["by_setting"], order=state["order"] > 0)


@dataclass(frozen=True, kw_only=True)
class NetworkScorer:
    """Logarithm of the probability of each setting under a policy network (``learners/rloo.py``).

    Attributes:
        means: fractions of the budgets of the training, mean ones and deadlines, ascending, shape [B] each.
        deadlines: likewise.
        request: shape [1 + F, H].
        bias: shape [H].
        heads: from the hidden layer to logits of settings, shape [H, S].
        budgets: logits of settings under each budget of the training, means first, shape [2 B, S].
    """

    lowest_price: ClassVar[float] = -100.0  # in log-probability; far below any that spends a budget
    knows_budget: ClassVar[bool] = True
    means: Floats
    deadlines: Floats
    request: Floats
    bias: Floats
    heads: Floats
    budgets: Floats

    def scores(self, prompts: Floats, budget: Budget) -> Floats:
        """Log-probabilities up to a constant of each request, [N, 1 + F] -> [N, S]; between budgets interpolated."""
        return np.maximum(prompts @ self.request + self.bias, 0.0) @ self.heads + self._of_budget(budget)

    def _of_budget(self, budget: Budget) -> Floats:
        is_mean = budget.kind == "mean"
        grid, first = (self.means, 0) if is_mean else (self.deadlines, len(self.means))
        rows = self.budgets[first : first + len(grid)]
        return np.array([np.interp(budget.fraction, grid, column) for column in rows.T])

    def state(self) -> dict[str, Floats]:
        """As arrays by name."""
        return dict(vars(self))

    @classmethod
    def restored(cls, state: Mapping[str, Floats]) -> "NetworkScorer":
        """From what ``state`` gave."""
        return cls(**state)


def scores_by_budget(scorer: Scorer, prompts: Floats) -> Callable[[Budget], Floats]:
    """Scores of some requests under any budget, worked out once where it makes no difference; [N, 1 + F] -> [N, S]."""
    if scorer.knows_budget:
        return partial(scorer.scores, prompts)
    scores = scorer.scores(prompts, Budget(kind="mean", fraction=1.0))
    return lambda budget: scores


SCORERS: dict[str, type[QualityScorer] | type[NetworkScorer]] = {"direct": QualityScorer, "rloo": NetworkScorer}


def restored_scorer(learner: str, state: Mapping[str, Floats]) -> Scorer:
    """The scorer of a learner, from its arrays.

    Raises:
        StoreError: no such learner; names those that exist.
    """
    if learner not in SCORERS:
        raise StoreError(f"unknown learner {learner!r}; known learners: {', '.join(SCORERS)}")
    return SCORERS[learner].restored(state)
