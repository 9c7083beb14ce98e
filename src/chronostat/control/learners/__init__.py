"""Learners by name.

A new one is one file with a subclass of ``Learner``, one line in ``LEARNERS``, and its name in ``TrainConfig``.
"""

from chronostat.control.learners.base import Learner, Outcome
from chronostat.control.learners.direct import DirectLearner
from chronostat.control.learners.rloo import RlooLearner
from chronostat.errors import ConfigError

LEARNERS: dict[str, type[Learner]] = {"rloo": RlooLearner, "direct": DirectLearner}


def learner_by_name(name: str) -> type[Learner]:
    """The class of a learner.

    Raises:
        ConfigError: no such learner; names those that exist.
    """
    if name not in LEARNERS:
        raise ConfigError(f"unknown learner {name!r}; known learners: {', '.join(LEARNERS)}")
    return LEARNERS[name]


__all__ = ["LEARNERS", "Learner", "Outcome", "learner_by_name"]
