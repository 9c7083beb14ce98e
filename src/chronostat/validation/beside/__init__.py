"""Policies of other origin that are judged beside the controller: the same executions, the same forecast and prices."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chronostat.control.controller import Controller
from chronostat.data.samples import Sample
from chronostat.errors import ConfigError
from chronostat.evidence.linear import Floats, Indices
from chronostat.evidence.observation import Observation
from chronostat.execution.trials import TrialInput
from chronostat.knobs.space import ActionSpace
from chronostat.policy.frontier import Requests
from chronostat.policy.policy import Policy
from chronostat.policy.priced import Priced
from chronostat.records import Budget, Trial
from chronostat.runs.session import Session
from chronostat.runs.training import step_inputs
from chronostat.validation.beside.kinds import KnowingKinds
from chronostat.validation.beside.plain_library import PlainLibrary


class Valuing(Protocol):
    """Learns what settings are worth in a context, which is what it sees of a sample."""

    def learn(self, context: str, settings: Indices, probabilities: Floats, quality: Floats, /) -> None:
        """The distinct draws of a trial, with the chance that each was drawn with; shape [n] each."""
        ...

    def scores(self, contexts: Sequence[str], /) -> Floats:
        """The value of each setting in each context, [N, S]."""
        ...


@dataclass(frozen=True)
class Kind:
    """A sort of policy.

    Attributes:
        make: one that knows nothing yet, from the action space, the contexts that may come, and a seed.
        sees: what it sees of a sample.
    """

    make: Callable[[ActionSpace, Sequence[str], int], Valuing]
    sees: Callable[[Sample], str]


def _kind_of(sample: Sample) -> str:
    if sample.kind is None:
        raise ConfigError(
            f"validation.beside = 'kind' is told the kind of each question, and {sample.place} says none; name its "
            "column in data.columns, or leave 'kind' out"
        )
    return sample.kind


BESIDE: Mapping[str, Kind] = {
    "kind": Kind(KnowingKinds, _kind_of),
    "vowpalwabbit": Kind(lambda space, contexts, seed: PlainLibrary(space), lambda sample: sample.prompt),
}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A policy that has learned what a run has executed.

    Attributes:
        sees: see ``Kind``.
        valuing: what it learned.
        policy: of the controller, whose features, forecast and margin are its own as well.
        priced: its prices.
    """

    sees: Callable[[Sample], str]
    valuing: Valuing
    policy: Policy
    priced: Priced

    def decide(
        self, trial_input: TrialInput, observation: Observation, budgets: Iterable[Budget], coin: float
    ) -> list[int]:
        """Positions of the settings for a sample, for each of some budgets."""
        scores = self.valuing.scores([self.sees(_sample(trial_input))])
        one = Requests(prompts=self.policy.features(observation.prompt[None]), tokens=observation.tokens[None])
        return [int(self.priced.choices(scores, one, budget, coin)[0]) for budget in budgets]


def beside(session: Session, controller: Controller) -> dict[str, Beside]:
    """Those that ``validation.beside`` asks for, by name, taught from what the run has stored.

    Raises:
        ConfigError: the run holds no training, or its samples are not what such a policy looks at.
    """
    names = session.config.validation.beside
    if not names:
        return {}
    stored = [(_sample(trial_input), trial) for trial_input, trial in _taught_by(session)]
    if not stored:
        raise ConfigError(
            f"validation.beside = {list(names)}: {session.store.folder} holds no trials to learn from; validate the "
            "run that trained the controller"
        )
    return {name: _taught(BESIDE[name], session, controller.policy, stored) for name in names}


def _taught_by(session: Session) -> Iterator[tuple[TrialInput, Trial]]:
    """All that a run has learned from, in the order of its phases, and which sample each trial is of."""
    of_step = step_inputs(session)
    for trial in session.store.trials("calibrate"):
        yield session.samples("train")[trial.index], trial
    for trial in session.store.trials("select"):
        yield session.samples("validation")[trial.index], trial
    for trial in session.store.trials("train"):
        yield of_step(trial.index), trial


def _taught(kind: Kind, session: Session, policy: Policy, stored: Sequence[tuple[Sample, Trial]]) -> Beside:
    unseen = [kind.sees(_sample(trial_input)) for trial_input in session.unseen_inputs()]
    valuing = kind.make(session.space, unseen, session.config.seed)
    for sample, trial in stored:
        valuing.learn(kind.sees(sample), *_draws(session.space, trial))
    priced = Priced.of(valuing.scores(unseen), policy.forecast, policy.requests, policy.legal, policy.margin)
    return Beside(sees=kind.sees, valuing=valuing, policy=policy, priced=priced)


def _draws(space: ActionSpace, trial: Trial) -> tuple[Indices, Floats, Floats]:
    """Settings, chances and qualities of the distinct draws of a trial that have a quality."""
    chances = dict(zip(trial.draws, trial.probabilities, strict=True))
    scored = [(position, trial.executions[position].quality) for position in chances]
    kept = [(position, quality) for position, quality in scored if quality is not None]
    return (
        np.array([space.index(trial.executions[position].setting) for position, _ in kept], dtype=np.intp),
        np.array([chances[position] for position, _ in kept]),
        np.array([quality for _, quality in kept]),
    )


def _sample(trial_input: TrialInput) -> Sample:
    if not isinstance(trial_input, Sample):
        raise ConfigError("validation.beside needs samples; ready batches say neither prompt nor kind")
    return trial_input
