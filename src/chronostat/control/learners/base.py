"""What a learner is: it proposes settings, learns from what they measured, and says how it values settings."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chronostat.config import Config
from chronostat.evidence.evidence import Evidence
from chronostat.evidence.linear import Floats, Indices
from chronostat.evidence.observation import Observation
from chronostat.knobs.space import ActionSpace
from chronostat.policy.scorers import Scorer
from chronostat.records import Budget


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings to execute, with the chance that each had.

    Attributes:
        settings: position in the space of each draw, with replacement, shape [G].
        probabilities: of each draw under the policy that made it, exactly, shape [G].
        version: of that policy.
    """

    settings: Indices
    probabilities: Floats
    version: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A measured group of draws as a learner sees it.

    Attributes:
        observation: what the policy saw.
        settings: position in the space of each draw, with repeats, shape [G].
        probabilities: of each draw under the policy that made it, shape [G].
        quality: score of each draw's answer in [0, 1], shape [G].
        latency: measured latency of each draw, the controller's own included, as a fraction of ``full``, shape [G].
        budget: that the group was drawn under; None where settings were drawn alike.
    """

    observation: Observation
    settings: Indices
    probabilities: Floats
    quality: Floats
    latency: Floats
    budget: Budget | None


class Learner(ABC):
    """A policy over the settings of a space, and how it learns.

    Whatever it knows follows from the outcomes it was given, in their order, so that a run resumes from what it stored.

    Args:
        space: the S settings to choose among.
        evidence: what all executions of the run have shown; it grows beside the learner.
        config: the run's configuration.
        budgets: that training draws from.
        seed: of the weights and of everything that learning draws.
    """

    @abstractmethod
    def __init__(
        self, space: ActionSpace, evidence: Evidence, config: Config, budgets: Sequence[Budget], seed: int
    ) -> None: ...

    @abstractmethod
    def propose(self, observation: Observation, budget: Budget, draws: int, rng: np.random.Generator) -> Proposal:
        """Settings to execute in training, drawn with replacement from the present policy.

        Args:
            observation: what is seen of the request.
            budget: any budget; one that no setting can meet is answered like the tightest that one can.
            draws: G.
            rng: the only source of chance.
        """

    @abstractmethod
    def learn(self, outcome: Outcome) -> dict[str, float]:
        """Learn from one measured group, which the evidence holds already.

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
        """Never propose some settings again, and give them no probability.

        Args:
            settings: positions in the space; one at least is left.
        """

    @abstractmethod
    def finish(self) -> None:
        """Refit to everything that was measured, until it has settled; nothing is executed."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """How it values settings now; a copy that learns no more."""
