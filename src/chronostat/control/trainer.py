"""The training loop: propose, execute and measure, learn, keep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from chronostat.control.calibration import chances_of, selected_settings
from chronostat.control.failures import Failures
from chronostat.control.learners.base import Learner, Outcome
from chronostat.control.observer import Observer
from chronostat.errors import StoreError
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.evidence.observation import Observation
from chronostat.execution.execute import identity
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Execution, LatencyMetric, Setting, Step, Trial

LatencyName = Literal["raw", "drift_corrected"]


@dataclass(kw_only=True)
class Trainer:
    """Teaches evidence and a learner from measured executions.

    What it knows follows from the trials it was given, in their order. So a run resumes from what it stored: ``learn``
    takes a stored trial as it takes one that has just been executed. What is drawn in step i comes from (seed, i).

    Attributes:
        evidence: grows with every execution.
        learner: proposes, and learns from what it drew; None before there is one.
        budgets: the budgets that are drawn from.
        full_ms: latency of ``full`` in the calibration.
        latency: what a latency is a fraction of: ``raw``: ``full_ms``; ``drift_corrected``: ``full_ms`` times the drift
            that the trial recorded.
        repeats: how often each drawn setting is executed; the median of its latencies counts.
        failures: settings that keep failing leave the action space.
        take_out: told of each setting that leaves, with the reason, after the learner.
        keep: called with the record of every step (the store).
        next_step: number of the step that comes next.
        executed_ms: milliseconds spent inside ``generate()`` so far.
        executions: that the draws of the steps so far asked for.
    """

    runner: TrialRunner
    space: ActionSpace
    observer: Observer
    evidence: Evidence
    metric: LatencyMetric
    full_ms: float
    group_size: int
    seed: int
    keep: Callable[[Step], None]
    failures: Failures
    latency: LatencyName = "drift_corrected"
    repeats: int = 1
    take_out: Callable[[Setting, str], None] = lambda setting, reason: None
    learner: Learner | None = None
    budgets: tuple[Budget, ...] = ()
    next_step: int = 0
    executed_ms: float = 0.0
    executions: int = 0
    _alike: list[Outcome] = field(default_factory=list, init=False)
    _disturbed: int = field(default=0, init=False)
    _timed: int = field(default=0, init=False)

    def begin(self, learner: Learner, budgets: tuple[Budget, ...]) -> None:
        """From now on a learner proposes; it learns from what was drawn alike before."""
        self.learner, self.budgets = learner, budgets
        learner.take_out(self.failures.taken_out)
        for outcome in self._alike:
            learner.learn(outcome)

    def select(self, index: int, trial_input: TrialInput) -> Trial:
        """Execute some settings on sample number ``index`` of the selection, drawn alike, and learn from it."""
        request = self.runner.request(trial_input)
        legal = self.failures.legal_settings
        settings = selected_settings(legal, index, self.seed)
        chances = chances_of(settings, len(legal))
        trial = self.runner.run("select", index, request, settings, probabilities=chances)
        self.absorb(trial, self.observer(request))
        return trial

    def step(self, trial_input: TrialInput) -> Step:
        """One training step on one sample."""
        assert self.learner is not None, "there is a learner before the first step"
        index = self.next_step
        rng = np.random.default_rng([self.seed, index])
        budget = self.budgets[rng.integers(len(self.budgets))]
        request = self.runner.request(trial_input)
        start_ns = self.runner.clock.host_ns()
        observation = self.observer(request)
        proposal = self.learner.propose(observation, budget, self.group_size, rng)
        settings = [self.space.settings[i] for i in proposal.settings.tolist()]
        controller_ms = self.runner.clock.host_ms_since(start_ns)
        trial = self.runner.run(
            "train",
            index,
            request,
            settings,
            budget=budget,
            controller_ms=controller_ms,
            again=list(dict.fromkeys(settings)) * (self.repeats - 1),
            probabilities=proposal.probabilities.tolist(),
            policy_version=proposal.version,
        )
        return self.learn(trial, observation)

    def relearn(self, trial: Trial, trial_input: TrialInput) -> Step:
        """Learn from the stored trial of the next step instead of executing it again.

        Raises:
            StoreError: it is not the trial of this step.
        """
        request = self.runner.request(trial_input)
        if trial.index != self.next_step or trial.sample_id != identity(request)["sample_id"]:
            raise StoreError(
                f"stored trial {trial.index} of sample {trial.sample_id!r} is not the one of step {self.next_step}; "
                "resume with the same config and data"
            )
        return self.learn(trial, self.observer(request), earlier=True)

    def learn(self, trial: Trial, observation: Observation, *, earlier: bool = False) -> Step:
        """Learn from a trial of a learner's draws.

        Args:
            trial: the executions.
            observation: of its request.
            earlier: they are of a process that has ended.
        """
        assert self.learner is not None, "there is a learner before the first step"
        assert trial.budget is not None, "a learner draws under a budget"
        self.absorb(trial, observation, earlier=earlier)
        self.executed_ms += sum(e.timing.total_ms for e in trial.executions if e.timing is not None)
        self.executions += trial.asked
        outcome = self._outcome(trial, observation)
        measured = len(outcome.settings)
        step = Step(
            index=self.next_step,
            executed_ms=self.executed_ms,
            quality=float(outcome.quality.mean()) if measured else float("nan"),
            latency_fraction=float(outcome.latency.mean()) if measured else float("nan"),
            budget=trial.budget,
            metrics=self.learner.learn(outcome) if measured else {},
        )
        self.next_step += 1
        self.keep(step)
        return step

    def absorb(self, trial: Trial, observation: Observation, *, earlier: bool = False) -> None:
        """Learn quality and latency of settings from every execution of a trial, whatever it was executed for."""
        measured = [execution for execution in trial.executions if execution.timing is not None]
        if measured:
            self.evidence.add(observation, self._answers(trial, measured))
        if self.learner is None and trial.draws and len((outcome := self._outcome(trial, observation)).settings):
            self._alike.append(outcome)
        for position in self.failures.add(trial, earlier=earlier):
            if self.learner is not None:
                self.learner.take_out([position])
            self.take_out(self.space.settings[position], self.failures.reasons[position])

    def _answers(self, trial: Trial, executions: Sequence[Execution]) -> Answers:
        drift = self._drift(trial)
        full_ms = self.full_ms * drift
        latencies = [e.latency_ms(self.metric) / full_ms if self._counts(e) else float("nan") for e in executions]
        qualities = [float("nan") if e.quality is None else e.quality for e in executions]
        settings = [self.space.index(execution.setting) for execution in executions]
        began = trial.executions[0]
        return Answers(
            settings=np.array(settings),
            quality=np.array(qualities),
            latency=np.array(latencies),
            drift=drift,
            first=0 if executions[0] is began else None,
        )

    def _counts(self, execution: Execution) -> bool:
        """Whether a latency is learned from: not where something else took part, unless it mostly does on this machine.

        The same rule as of means in validation.
        """
        self._timed += 1
        self._disturbed += execution.disturbed is not None
        return execution.disturbed is None or 2 * self._disturbed > self._timed

    def full_now_ms(self) -> float:
        """What ``full`` takes at the end, by everything that was learned from.

        Raw latencies hold the drift of the whole run already; corrected ones know that of the calibration alone.
        """
        full_ms, drift = self.full_ms * self.evidence.latency.full, self.runner.drift
        if self.latency == "raw" or drift is None:
            return full_ms
        return full_ms * drift.at(self.runner.elapsed_s).point

    def _drift(self, trial: Trial) -> float:
        """What the latencies of a trial are divided by beside ``full_ms``."""
        return trial.drift.point if self.latency == "drift_corrected" and trial.drift is not None else 1.0

    def _outcome(self, trial: Trial, observation: Observation) -> Outcome:
        return outcome_of(trial, observation, self.space, self.metric, self.full_ms * self._drift(trial))


def outcome_of(
    trial: Trial, observation: Observation, space: ActionSpace, metric: LatencyMetric, full_ms: float
) -> Outcome:
    """A measured trial as the learner sees it: draws whose execution failed, or has no quality, are left out.

    Executions that something else on the machine disturbed count: a reward is what was measured.

    Args:
        trial: the executions.
        observation: of its request.
        space: the settings.
        metric: the latency that counts; ``controller_ms`` is added.
        full_ms: the latency of ``full`` that these are fractions of.
    """
    executions = [trial.executions[i] for i in trial.draws]
    answers = [_answers(trial, execution) for execution in executions]
    valid = [i for i, found in enumerate(answers) if found]
    return Outcome(
        observation=observation,
        settings=np.array([space.index(executions[i].setting) for i in valid], dtype=np.intp),
        probabilities=np.array([trial.probabilities[i] for i in valid]),
        quality=np.array([answers[i][0].quality for i in valid], dtype=np.float64),
        latency=np.array([_median_ms(trial, executions[i].setting, metric) / full_ms for i in valid]),
        budget=trial.budget,
    )


def _answers(trial: Trial, drawn: Execution) -> list[Execution]:
    """The measured executions whose answer is that of a draw: its own where answers are sampled, else any of them."""
    same = _measured(trial, drawn.setting)
    return same if drawn.sampling_seed is None else [execution for execution in same if execution is drawn]


def _measured(trial: Trial, setting: Setting) -> list[Execution]:
    return [e for e in trial.executions if e.setting == setting and e.timing is not None and e.quality is not None]


def _median_ms(trial: Trial, setting: Setting, metric: LatencyMetric) -> float:
    return float(np.median([e.charged_ms(metric) for e in _measured(trial, setting)]))
