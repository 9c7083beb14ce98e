"""A trial: several settings executed on one sample, in random order, with ``full`` as an anchor now and then."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.data.quality import Quality
from chronostat.data.samples import Sample
from chronostat.errors import ChronostatError, ExecutionError
from chronostat.execution.execute import BatchRequest, Request, execute, identity, request_for, without_capturing
from chronostat.measure.clock import Clock
from chronostat.measure.decoding import decoding_of, draw_seed
from chronostat.measure.generate import Measured
from chronostat.records import NOT_CALLED, Budget, Estimate, Execution, Phase, Setting, Source, StageTiming, Trial

TrialInput = Sample | BatchRequest


class Drift(Protocol):
    """How the latency of ``full`` has changed since the calibration (``chronostat.control.drift``)."""

    def at(self, started_s: float) -> Estimate:
        """Relative to the calibration, from the anchors before."""
        ...

    def add(self, trial: Trial) -> None:
        """Take the anchor of a trial, if it has one."""
        ...


@dataclass(kw_only=True)
class TrialRunner:
    """Runs trials on one model and hands each one on as it ends.

    Attributes:
        full: the setting of the anchors.
        source: what this run's latencies are. In a measured run an execution whose stages were not seen is recorded as
            invalid; in a ``total_only`` run the stages of those that were seen are left out; in an ``estimated`` run
            all latencies are replaced. None: not decided yet, see ``in_source``.
        estimate: the estimates that an ``estimated`` run records; never called in another.
        keep: called with every finished trial (the store).
        anchor_every_s: an anchor is added to a trial when the last one that was measured is older than this.
        time_limit_s: a generation that takes longer has failed; None: no limit.
        drift: told of every trial, and asked before it; None: not known yet.
        conditions: fingerprint that every execution carries.
        sample: the model samples its answers, from a seed for each draw; else they are greedy.

    Raises:
        ConfigError: it shall sample, and its generation_config does not.
        MeasurementError: the model is set to assisted decoding, or samples along beams.
    """

    model: PreTrainedModel
    processor: ProcessorMixin | None
    quality: Quality | None
    full: Setting
    max_new_tokens: int
    clock: Clock
    seed: int
    keep: Callable[[Trial], None]
    anchor_every_s: float
    source: Source | None = "measured"
    estimate: Callable[[Execution], StageTiming] | None = None
    time_limit_s: float | None = None
    drift: Drift | None = None
    conditions: str | None = None
    sample: bool = False
    _last_anchor_ns: int | None = field(default=None, init=False)
    _start_ns: int = field(init=False)

    def __post_init__(self) -> None:
        decoding_of(self.model, sample=self.sample)
        self._start_ns = self.clock.host_ns()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self.clock.host_ms_since(self._start_ns) / 1e3

    def request(self, trial_input: TrialInput) -> Request:
        """What is executed for a sample, or the ready batch itself.

        Raises:
            DataError: an image cannot be read.
        """
        if isinstance(trial_input, BatchRequest):
            return trial_input
        assert self.processor is not None, "samples need a processor"
        return request_for(trial_input, self.processor, self.quality)

    def run(
        self,
        phase: Phase,
        index: int,
        request: Request,
        draws: Sequence[Setting],
        *,
        budget: Budget | None = None,
        controller_ms: float = 0.0,
        again: Sequence[Setting] = (),
        probabilities: Sequence[float] = (),
        policy_version: int | None = None,
    ) -> Trial:
        """Execute every distinct setting of ``draws`` once, in random order; every single draw where the model samples.

        Args:
            phase: what the trial is for.
            index: position of the trial in its phase; with the seed it fixes the order.
            request: what is executed.
            draws: settings; equal ones share one execution if answers are greedy, since they would be equal too.
            budget: the budget under which they were drawn.
            controller_ms: what drawing them cost; charged to each execution.
            again: settings of ``draws`` that are executed once more for each time they are named here.
            probabilities: of each draw, for the record.
            policy_version: of what drew them, for the record.
        """
        started_s = self.elapsed_s
        drift = None if self.drift is None else self.drift.at(started_s)
        anchor_due = self._anchor_due()
        planned = self._planned(draws, again, anchor_due=anchor_due)
        order = np.random.default_rng([self.seed, _PHASE_NUMBER[phase], index]).permutation(len(planned)).tolist()
        settings = [planned[i] for i in order]
        seeds = self._seeds(phase, index, identity(request)["sample_id"], planned)
        attempt = functools.partial(self._attempt, request, controller_ms=controller_ms, warms_up=phase == "warmup")
        executions = tuple(
            replace(attempt(planned[i], seed=seeds[i]), conditions=self.conditions, sampling_seed=seeds[i])
            for i in order
        )
        anchor = settings.index(self.full) if self.full in settings else None
        if anchor is not None and executions[anchor].invalid is None:
            self._last_anchor_ns = self.clock.host_ns()
        trial = Trial(
            phase=phase,
            index=index,
            sample_id=executions[0].sample_id,
            executions=executions,
            draws=tuple(order.index(i) if self.sample else settings.index(draw) for i, draw in enumerate(draws)),
            probabilities=tuple(probabilities),
            policy_version=policy_version,
            anchor=anchor,
            budget=budget,
            started_s=started_s,
            drift=drift,
        )
        if self.drift is not None:
            self.drift.add(trial)
        self.keep(trial)
        return trial

    def _anchor_due(self) -> bool:
        last = self._last_anchor_ns
        return last is None or self.clock.host_ms_since(last) >= self.anchor_every_s * 1e3

    def _planned(self, draws: Sequence[Setting], again: Sequence[Setting], *, anchor_due: bool) -> list[Setting]:
        """What is executed; where the model samples the draws come first, each for itself."""
        planned = list(draws if self.sample else dict.fromkeys(draws))
        if anchor_due and self.full not in planned:
            planned.append(self.full)
        return [*planned, *again]

    def _seeds(self, phase: Phase, index: int, sample_id: str, planned: Sequence[Setting]) -> list[int | None]:
        """What each execution draws its tokens from: no order and no other setting has a part in it."""
        if not self.sample:
            return [None] * len(planned)
        return [
            draw_seed(self.seed, sample_id, setting, phase, index, planned[:i].count(setting))
            for i, setting in enumerate(planned)
        ]

    def _attempt(
        self, request: Request, setting: Setting, *, controller_ms: float, seed: int | None, warms_up: bool
    ) -> Execution:
        execute_once = functools.partial(self._execute, request, setting, controller_ms, seed)
        outcome = self._executed_or_reason(execute_once, warms_up=warms_up)
        executed = self._counted(request, setting, outcome)
        return replace(executed, conditions=self.conditions, sampling_seed=seed)

    def _counted(self, request: Request, setting: Setting, outcome: Execution | str) -> Execution:
        """One execution; a failure is recorded with its reason and never becomes a number.

        Whatever a model raises is a failure of this execution, and so is an ``ExecutionError``. Another error that is
        meant for a person is none: it says that nothing can be executed as asked. A run has one engine, so an execution
        that was not replayed in a run of the engine "graph" has failed as well; warming up may count work, which hooks
        do, and those no replay calls.
        """
        if isinstance(outcome, Execution):
            return self._in_source(request, outcome)
        if outcome.startswith(_OUT_OF_MEMORY) and torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the error and the tensors in its frames are gone
        return _failed(request, setting, outcome)

    def _executed_or_reason(
        self, execute_once: Callable[[Callable[[Measured], None]], Execution], *, warms_up: bool
    ) -> Execution | str:
        try:
            execution, measured = without_capturing(execute_once)
        except ExecutionError as error:
            return _reason(error)
        except ChronostatError:
            raise
        except Exception as error:  # noqa: BLE001 - what a model can raise is not known; it is recorded, never dropped
            return _reason(error)
        if measured.fell_back is not None and not warms_up:
            return f"the engine 'graph' fell back: {measured.fell_back}"
        return execution

    def _execute(
        self,
        request: Request,
        setting: Setting,
        controller_ms: float,
        seed: int | None,
        seen: Callable[[Measured], None],
    ) -> Execution:
        return execute(
            self.model,
            request,
            setting=setting,
            max_new_tokens=self.max_new_tokens,
            controller_ms=controller_ms,
            clock=self.clock,
            time_limit_s=self.time_limit_s,
            sampling_seed=seed,
            seen=seen,
        )

    def in_source(self, trial: Trial, request: Request) -> Trial:
        """A trial that ran before ``source`` was decided, as this run counts it.

        If there is still none, its latencies count as not measured: another process may find another source.
        """

        def counted(execution: Execution) -> Execution:
            timing = execution.timing
            if timing is None:
                return execution
            if self.source is not None:
                return self._in_source(request, execution)
            return _failed(request, execution.setting, timing.unseen or "it ran before the run's source was known")

        return replace(trial, executions=tuple(map(counted, trial.executions)))

    def _in_source(self, request: Request, execution: Execution) -> Execution:
        """The execution as this run counts it: one run has one source."""
        timing = execution.timing
        assert timing is not None
        if self.source == "estimated":
            assert self.estimate is not None, "an estimated run has an estimator"
            estimate = self.estimate(execution)
            return replace(execution, timing=estimate, disturbed=None)  # no machine disturbs an estimate
        if self.source in {None, timing.source}:
            return execution
        if self.source == "measured":
            return _failed(request, execution.setting, timing.unseen or "the stages were not seen")
        total = StageTiming(
            source="total_only",
            total_ms=timing.total_ms,
            new_tokens=timing.new_tokens,
            decode_steps=timing.decode_steps,
            unseen="the stages of other executions of this run cannot be seen",
        )
        return replace(execution, timing=total)


_PHASE_NUMBER: dict[Phase, int] = {"warmup": 0, "calibrate": 1, "train": 2, "select": 3, "test": 4, "rank": 5}


_OUT_OF_MEMORY = torch.OutOfMemoryError.__name__


def _reason(error: Exception) -> str:
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if note == NOT_CALLED)
    return f"{type(error).__name__}: {error}{notes}"


def _failed(request: Request, setting: Setting, reason: str) -> Execution:
    return Execution(**identity(request), setting=setting, timing=None, invalid=reason)
