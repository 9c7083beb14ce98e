"""What does a run know after so many executions? The product's own phases on a world in place of a model."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from benchmarks.learners.world import World
from chronostat.config import Config
from chronostat.control.calibration import calibrated_settings, chances_of, selected_settings, training_budgets
from chronostat.control.learners import Learner, Outcome, learner_by_name
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.evidence.linear import Floats, Indices
from chronostat.evidence.observation import Observation
from chronostat.policy.frontier import Requests
from chronostat.records import Budget, Setting


@dataclass(frozen=True, kw_only=True)
class Executed:
    """What the run executed for one request.

    Attributes:
        prompt: position of its prompt in the table.
        settings: shape [n].
        probabilities: of each under the policy that drew it, shape [n].
        quality: shape [n].
    """

    prompt: int
    settings: Indices
    probabilities: Floats
    quality: Floats


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run whose training has ended.

    Attributes:
        executions: of the training, as many as were asked for.
        evidence: of everything that was executed.
        learner: refitted.
        executed: for each request in their order, of all phases.
        unseen: positions of the prompts of the requests that are looked at, not executed.
    """

    executions: int
    evidence: Evidence
    learner: Learner
    executed: tuple[Executed, ...]
    unseen: Indices


class Replay:
    """A run of the product on a world: calibrates, selects, and trains as ``chronostat train`` does.

    Args:
        world: answers instead of a model.
        config: of the run; its seed draws everything but the world.
    """

    def __init__(self, world: World, config: Config) -> None:
        self._world, self._config, self._space = world, config, world.table.space
        self._rng = np.random.default_rng([config.seed, 0])
        self._executed: list[Executed] = []
        self._alike: list[Outcome] = []
        draws = [world.draw(self._rng) for _ in range(config.train.unseen)]
        self._unseen = np.array([world.table.prompt[request] for request in draws], dtype=np.intp)
        self.evidence = Evidence(self._space, [self._observation(request) for request in draws], config.seed)

    def runs(self, sizes: Sequence[int]) -> Iterator[Trained]:
        """The run at each number of training executions, ascending; it goes on from one to the next."""
        self._calibrate_and_select()
        evidence, config = self.evidence, self._config
        requests = Requests(prompts=evidence.prompts, tokens=evidence.tokens)
        budgets = training_budgets(evidence.forecast(), requests)
        learner = learner_by_name(config.train.learner)(self._space, evidence, config, budgets, config.seed)
        for outcome in self._alike:
            learner.learn(outcome)
        executions = step = 0
        for size in sizes:
            while executions < size:
                rng = np.random.default_rng([config.seed, step])
                budget = budgets[rng.integers(len(budgets))]
                request = self._world.draw(self._rng)
                observation = self._observation(request)
                proposal = learner.propose(observation, budget, config.train.group_size, rng)
                outcome = self._execute(proposal.settings, proposal.probabilities, budget, request)
                learner.learn(outcome)
                executions, step = executions + len(np.unique(proposal.settings)), step + 1
            yield self._ended(size, learner)

    def _calibrate_and_select(self) -> None:
        train, seed = self._config.train, self._config.seed
        for settings in calibrated_settings(self._space, train.calibration_executions, seed):
            self._execute_group(settings)
        self.evidence.fit()
        done = index = 0
        while done < train.select_executions:
            settings = selected_settings(self._space.settings, index, seed)
            self._execute_group(settings)
            done, index = done + len(settings), index + 1
        self.evidence.fit()

    def _execute_group(self, settings: Sequence[Setting]) -> None:
        """Settings that no learner drew, on the next request."""
        draws = np.array([self._space.index(setting) for setting in settings], dtype=np.intp)
        chances = np.array(chances_of(settings, len(self._space)))
        self._alike.append(self._execute(draws, chances, None, self._world.draw(self._rng)))

    def _execute(
        self,
        draws: Indices,
        probabilities: Floats,
        budget: Budget | None,
        request: tuple[int, int],
    ) -> Outcome:
        """Each distinct draw once, as evidence; the outcome has all draws."""
        settings, first, back = np.unique(draws, return_index=True, return_inverse=True)
        quality, latency = self._world.execute(request, settings, self._rng)
        observation = self._observation(request)
        self.evidence.add(observation, Answers(settings=settings, quality=quality, latency=latency))
        self._executed.append(
            Executed(
                prompt=int(self._world.table.prompt[request]),
                settings=settings,
                probabilities=probabilities[first],
                quality=quality,
            )
        )
        return Outcome(
            observation=observation,
            settings=draws,
            probabilities=probabilities,
            quality=quality[back],
            latency=latency[back],
            budget=budget,
        )

    def _observation(self, request: tuple[int, int]) -> Observation:
        return self._world.table.observations[self._world.table.prompt[request]]

    def _ended(self, size: int, learner: Learner) -> Trained:
        """As if the training ended here; the run itself goes on as if it had not been looked at."""
        learner, evidence = deepcopy((learner, self.evidence))
        learner.finish()
        evidence.fit()
        return Trained(
            executions=size,
            evidence=evidence,
            learner=learner,
            executed=tuple(self._executed),
            unseen=self._unseen,
        )
