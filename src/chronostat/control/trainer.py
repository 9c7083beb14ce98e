"""The training loop: propose, execute and measure, reward, learn, keep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from chronostat.control.failures import Failures
from chronostat.control.learners.base import Learner, Outcome
from chronostat.control.observation import Observer
from chronostat.errors import StoreError
from chronostat.execution.execute import Request, identity
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Execution, LatencyMetric, Setting, Step, Trial


@dataclass(kw_only=True)
class Trainer:
    """Teaches a learner from measured executions.

    Everything that is drawn in step i comes from (seed, i), so a step needs no random state but its number, and a
    resumed run repeats a step from the stored trial instead of executing it again.

    Attributes:
        budgets: the budgets that are drawn from.
        full_ms: latency of ``full`` in the calibration.
        latency: what a latency is a fraction of in rewards: ``raw``: ``full_ms``; ``drift_corrected``: ``full_ms``
            times the drift that the trial recorded.
        repeats: how often each drawn setting is executed; the median of its latencies counts.
        failures: settings that keep failing leave the action space.
        take_out: told of each setting that leaves, with the reason, after the learner.
        keep: called with the record of every step (the store).
        next_step: number of the step that comes next.
        executed_ms: milliseconds spent inside ``generate()`` so far.
    """

    runner: TrialRunner
    space: ActionSpace
    observer: Observer
    learner: Learner
    budgets: tuple[Budget, ...]
    metric: LatencyMetric
    full_ms: float
    group_size: int
    seed: int
    keep: Callable[[Step], None]
    failures: Failures
    latency: Literal["raw", "drift_corrected"] = "drift_corrected"
    repeats: int = 1
    take_out: Callable[[Setting, str], None] = lambda setting, reason: None
    next_step: int = 0
    executed_ms: float = 0.0
    _stored: dict[int, Trial] = field(default_factory=dict, init=False)

    def step(self, trial_input: TrialInput) -> Step:
        """One training step on one sample; a trial that is already stored is learned from without executing."""
        index = self.next_step
        numbers = np.random.default_rng([self.seed, index])
        generator = torch.Generator().manual_seed(int(numbers.integers(2**62)))
        budget = self.budgets[numbers.integers(len(self.budgets))]
        request = self.runner.request(trial_input)

        start_ns = self.runner.clock.host_ns()
        observation = self.observer(request)
        draws = self.learner.propose(observation, budget, self.group_size, generator)
        settings = [self.space.settings[i] for i in draws.tolist()]
        controller_ms = self.runner.clock.host_ms_since(start_ns)

        stored = self._stored.pop(index, None)
        if stored is None:
            again = list(dict.fromkeys(settings)) * (self.repeats - 1)
            trial = self.runner.run(
                "train", index, request, settings, budget=budget, controller_ms=controller_ms, again=again
            )
            return self._learn(trial, budget, draws, observation)
        if not _repeats(stored, request, settings, budget):
            raise StoreError(f"stored trial {index} does not continue the checkpoint; resume with the same config")
        return self._learn(stored, budget, draws, observation, earlier=True)

    def _learn(
        self, trial: Trial, budget: Budget, draws: Tensor, observation: Tensor, *, earlier: bool = False
    ) -> Step:
        self.executed_ms += sum(e.timing.total_ms for e in trial.executions if e.timing is not None)
        outcome = outcome_of(trial, draws, observation, budget, self.metric, self._full_ms(trial))
        measured = len(outcome.settings)
        metrics = self.learner.learn(outcome) if measured else {}
        step = Step(
            index=self.next_step,
            executed_ms=self.executed_ms,
            quality=float(outcome.quality.mean()) if measured else float("nan"),
            latency_fraction=float(outcome.latency.mean()) if measured else float("nan"),
            budget=budget,
            metrics=metrics,
        )
        self.next_step += 1
        for position in self.failures.add(trial, earlier=earlier):
            self.learner.take_out([position])
            self.take_out(self.space.settings[position], self.failures.reasons[position])
        self.keep(step)
        return step

    def _full_ms(self, trial: Trial) -> float:
        """What the latencies of a trial are fractions of."""
        drift = trial.drift if self.latency == "drift_corrected" else None
        return self.full_ms * (1.0 if drift is None else drift.point)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain numbers from which ``resume`` continues bit for bit."""
        numbers = {
            "next_step": self.next_step,
            "executed_ms": self.executed_ms,
            "streaks": list(self.failures.streaks),
            "reasons": {str(position): reason for position, reason in self.failures.reasons.items()},
        }
        return self.learner.state(), numbers

    def resume(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave; failures of ``full`` are forgotten, see ``Failures.add``."""
        self.learner.load_state(tensors)
        self.next_step, self.executed_ms = int(numbers["next_step"]), float(numbers["executed_ms"])
        reasons = {int(position): reason for position, reason in numbers["reasons"].items()}
        self.failures = Failures(self.space, [0, *numbers["streaks"][1:]], reasons)

    def replay(self, trials: list[Trial]) -> None:
        """Stored trials that the coming steps learn from instead of executing them again."""
        self._stored = {trial.index: trial for trial in trials if trial.index >= self.next_step}


def _repeats(trial: Trial, request: Request, settings: Sequence[Setting], budget: Budget) -> bool:
    """Whether a stored trial is the one that this step would execute."""
    drawn = [trial.executions[i].setting for i in trial.draws]
    return drawn == settings and trial.budget == budget and trial.sample_id == identity(request)["sample_id"]


def outcome_of(
    trial: Trial, draws: Tensor, observation: Tensor, budget: Budget, metric: LatencyMetric, full_ms: float
) -> Outcome:
    """A measured trial as the learner sees it: draws whose execution failed, or has no quality, are left out.

    Executions that something else on the machine disturbed count: learning averages over them, and over the anchors
    that the same machine disturbed.

    Args:
        trial: the executions.
        draws: index of each drawn setting in the space, shape [G].
        observation: shape [D].
        budget: the budget the group was drawn under.
        metric: the latency that counts; ``controller_ms`` is added.
        full_ms: the latency of ``full`` that these are fractions of.
    """
    executions = [trial.executions[i] for i in trial.draws]
    answers = [_answers(trial, execution) for execution in executions]
    valid = [i for i, found in enumerate(answers) if found]
    latencies = [_median_ms(trial, executions[i].setting, metric) / full_ms for i in valid]
    qualities = [answers[i][0].quality for i in valid]
    return Outcome(
        observation=observation,
        settings=draws[valid],
        quality=torch.tensor(qualities, dtype=torch.float32),
        latency=torch.tensor(latencies, dtype=torch.float32),
        budget=budget,
    )


def _answers(trial: Trial, drawn: Execution) -> list[Execution]:
    """The measured executions whose answer is that of a draw: its own where answers are sampled, else any of them."""
    same = _measured(trial, drawn.setting)
    return same if drawn.sampling_seed is None else [execution for execution in same if execution is drawn]


def _measured(trial: Trial, setting: Setting) -> list[Execution]:
    return [e for e in trial.executions if e.setting == setting and e.timing is not None and e.quality is not None]


def _median_ms(trial: Trial, setting: Setting, metric: LatencyMetric) -> float:
    return float(np.median([e.charged_ms(metric) for e in _measured(trial, setting)]))
