"""What a learner is: it proposes settings, learns from what they measured, and decides when it is frozen."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chronostat.config import Config
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A measured trial as a learner sees it.

    Attributes:
        observation: what the policy saw, float32 of shape [D].
        settings: position in the space of each draw, with repeats, int64 of shape [G].
        quality: score of each draw's answer in [0, 1], shape [G].
        latency: measured latency of each draw, the controller's own included, as a fraction of ``full``, shape [G].
        budget: the budget that the group was drawn under.
    """

    observation: Tensor
    settings: Tensor
    quality: Tensor
    latency: Tensor
    budget: Budget


class Learner(ABC):
    """A policy over the settings of a space, and how it learns.

    Args:
        space: the S settings to choose among.
        observation_size: D.
        config: the run's configuration.
        seed: seed of the weights and of everything that learning draws.
        latency_means: mean latency of each setting in the calibration of this run, the controller's own included, as
            fractions of ``full``, length S; NaN where it could not be measured.
        budgets: the budgets that training draws from.
    """

    @abstractmethod
    def __init__(
        self,
        space: ActionSpace,
        observation_size: int,
        config: Config,
        seed: int,
        latency_means: Sequence[float],
        budgets: Sequence[Budget],
    ) -> None: ...

    @abstractmethod
    def propose(self, observation: Tensor, budget: Budget, draws: int, generator: torch.Generator) -> Tensor:
        """Settings to execute in training, drawn with replacement from the learner's current policy.

        Args:
            observation: shape [D].
            budget: any budget; one that no setting can meet is answered like the tightest that one can.
            draws: G.
            generator: the only source of chance.

        Returns:
            Positions in the space, int64 of shape [G].
        """

    @abstractmethod
    def learn(self, outcome: Outcome) -> dict[str, float]:
        """Learn from one measured trial.

        Returns:
            Numbers for the learning curve, by name.
        """

    def head_gradients(self) -> Mapping[str, float]:
        """Length of the last update's gradient at what chooses the values of each knob, by the knob's name.

        Knobs with one value have none. Empty before the first update, and for a learner without gradients; the
        start-up check of a run stops where one of them is 0 (``runs/knob_check.py``).
        """
        return {}

    @abstractmethod
    def take_out(self, settings: Sequence[int]) -> None:
        """Never propose or decide for some settings again, and give them no probability.

        Args:
            settings: positions in the space; one at least is left.
        """

    @abstractmethod
    def decide(self, observation: Tensor, budget: Budget) -> int:
        """The setting of the frozen policy: nothing is drawn.

        Args:
            observation: shape [D].
            budget: a budget of either kind, not only those of the training.

        Returns:
            Position in the space.

        Raises:
            BudgetError: no setting can meet the budget; names the cheapest fraction.
        """

    @abstractmethod
    def settle(self, observations: Tensor, latency_means: Tensor | None = None) -> None:
        """Fit what holds the frozen policy to its mean budgets; nothing is executed.

        Args:
            observations: unseen requests of the kind to come, shape [N, D] with N >= 1.
            latency_means: of the settings as measured since the training, the controller's own latency included, as
                fractions of ``full``, shape [S], NaN where nothing was measured; they replace those of the training.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything from which learning continues bit for bit."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""

    @abstractmethod
    def policy_state(self) -> dict[str, Tensor]:
        """Only what ``decide`` needs."""

    @abstractmethod
    def load_policy_state(self, state: Mapping[str, Tensor]) -> None:
        """Decide as the learner did that gave ``policy_state``."""
