"""A trial: several settings executed on one sample, in random order, with ``full`` as an anchor now and then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.data.quality import Quality
from chronostat.data.samples import Sample
from chronostat.errors import ChronostatError, ExecutionError
from chronostat.execution import BatchRequest, Request, execute, identity, request_for
from chronostat.measure.clock import Clock
from chronostat.measure.generate import Measured, require_one_path
from chronostat.records import NOT_CALLED, Budget, Estimate, Execution, Phase, Setting, Source, StageTiming, Trial

Subject = Sample | BatchRequest


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

    Raises:
        MeasurementError: the model is set to beams or assisted decoding.
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
    _last_anchor_ns: int | None = field(default=None, init=False)
    _start_ns: int = field(init=False)

    def __post_init__(self) -> None:
        require_one_path(self.model)
        self._start_ns = self.clock.host_ns()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self.clock.host_ms_since(self._start_ns) / 1e3

    def request(self, subject: Subject) -> Request:
        """What is executed for a sample, or the ready batch itself.

        Raises:
            DataError: an image cannot be read.
        """
        if isinstance(subject, BatchRequest):
            return subject
        assert self.processor is not None, "samples need a processor"
        return request_for(subject, self.processor, self.quality)

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
    ) -> Trial:
        """Execute every distinct setting of ``draws`` once, in random order.

        Args:
            phase: what the trial is for.
            index: position of the trial in its phase; with the seed it fixes the order.
            request: what is executed.
            draws: settings, equal ones share one execution.
            budget: the budget under which they were drawn.
            controller_ms: what drawing them cost; charged to each execution.
            again: settings of ``draws`` that are executed once more for each time they are named here.
        """
        started_s = self.elapsed_s
        drift = None if self.drift is None else self.drift.at(started_s)
        anchor_due = self._anchor_due()
        distinct = list(dict.fromkeys([*draws, self.full] if anchor_due else draws))
        planned = [*distinct, *again]
        order = np.random.default_rng([self.seed, _PHASE_NUMBER[phase], index]).permutation(len(planned))
        settings = [planned[i] for i in order]
        executions = tuple(
            replace(
                self._attempt(request, setting, controller_ms, warms_up=phase == "warmup"), conditions=self.conditions
            )
            for setting in settings
        )
        anchor = settings.index(self.full) if self.full in settings else None
        if anchor is not None and executions[anchor].invalid is None:
            self._last_anchor_ns = self.clock.host_ns()
        trial = Trial(
            phase=phase,
            index=index,
            sample_id=executions[0].sample_id,
            executions=executions,
            draws=tuple(settings.index(setting) for setting in draws),
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

    def _attempt(self, request: Request, setting: Setting, controller_ms: float, *, warms_up: bool) -> Execution:
        """One execution; a failure is recorded with its reason and never becomes a number.

        Whatever a model raises is a failure of this execution, and so is an ``ExecutionError``. Another error that is
        meant for a person is none: it says that nothing can be executed as asked. A run has one engine, so an execution
        that was not replayed in a run of the engine "graph" has failed as well; warming up may count work, which hooks
        do, and those no replay calls.
        """
        outcome = self._executed_or_reason(request, setting, controller_ms, warms_up=warms_up)
        if isinstance(outcome, Execution):
            return self._in_source(request, outcome)
        if outcome.startswith(_OUT_OF_MEMORY) and torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the error and the tensors in its frames are gone
        return _failed(request, setting, outcome)

    def _executed_or_reason(
        self, request: Request, setting: Setting, controller_ms: float, *, warms_up: bool
    ) -> Execution | str:
        seen: list[Measured] = []
        try:
            execution = self._execute(request, setting, controller_ms, seen)
            if seen[-1].captured:  # what it took is the time of capturing
                execution = self._execute(request, setting, controller_ms, seen)
        except ExecutionError as error:
            return _reason(error)
        except ChronostatError:
            raise
        except Exception as error:  # noqa: BLE001 - what a model can raise is not known; it is recorded, never dropped
            return _reason(error)
        if seen[-1].fell_back is not None and not warms_up:
            return f"the engine 'graph' fell back: {seen[-1].fell_back}"
        return execution

    def _execute(self, request: Request, setting: Setting, controller_ms: float, seen: list[Measured]) -> Execution:
        return execute(
            self.model,
            request,
            setting=setting,
            max_new_tokens=self.max_new_tokens,
            controller_ms=controller_ms,
            clock=self.clock,
            time_limit_s=self.time_limit_s,
            seen=seen.append,
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
