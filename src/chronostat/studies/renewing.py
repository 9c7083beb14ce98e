"""Few executions that renew a controller where it is now: another day, machine, dtype or device of its model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chronostat.config import Config
from chronostat.control.calibration import alone, calibrated_settings
from chronostat.control.controller import Controller, read_for
from chronostat.control.failures import IN_A_ROW, Failures
from chronostat.control.recalibration import Recalibration, recalibrated
from chronostat.data.own import OwnData
from chronostat.data.samples import Sample, Split
from chronostat.errors import MeasurementError
from chronostat.execution.execute import Request
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.measure.clock import Clock, clock_for
from chronostat.progress import Progress
from chronostat.records import Execution, Setting, Trial
from chronostat.runs.session import decide_source, executions
from chronostat.runs.workload import Workload, load_data, load_model

_WARMING = 3  # at most one in so many executions warms up


@dataclass(frozen=True)
class Passing:
    """Requests that came by; which split they are of says nothing about latency."""

    samples: Sequence[TrialInput]

    def split(self, name: Split) -> Sequence[TrialInput]:
        """All of them."""
        return self.samples


def passing(config: Config, data: Path | None) -> Sequence[Sample]:
    """Samples to execute: all of a file or folder, or the validation split of what the controller was trained on.

    Raises:
        ConfigError, DataError: the data cannot be used, or there is none.
    """
    if data is None:
        return load_data(config).split("validation")
    return OwnData(data, config.data.columns, config.data.shuffle).everything


def renew(
    folder: Path, config: Config, samples: Sequence[Sample], *, most: int, seed: int, progress: Progress
) -> Recalibration:
    """Load the controller in a folder with its model, and renew it; nothing is written.

    Args:
        folder: of the controller.
        config: of its training, with the model and the measuring of here.
        samples: requests that came by.
        most: executions, warming up among them.
        seed: of the order of settings and executions.
        progress: told how far it is.

    Raises:
        StoreError: the folder holds no controller, or a damaged one.
        ModelError: it belongs to another model.
        MeasurementError: ``full`` or its stages could not be measured, or too little else.
    """
    vlm = load_model(config)
    controller = read_for(folder, vlm.model, vlm.processor)
    return renew_with(controller, Workload.of(config, vlm, Passing(samples)), most=most, seed=seed, progress=progress)


def renew_with(
    controller: Controller,
    workload: Workload,
    *,
    most: int,
    seed: int,
    progress: Progress,
    clock: Clock | None = None,
) -> Recalibration:
    """The same with what is loaded already; arguments as of ``renew``."""
    with workload.stabilised() as eager_because:
        if eager_because is not None:
            progress.warn(f"the model runs eagerly, not by the engine 'graph': {eager_because}")
        measured = _Executing(controller, workload, seed, clock, progress).at_most(most)
        renewed = recalibrated(controller, workload.vlm.model, measured, clock)
    here = {"model": workload.config.model, "measure": workload.config.measure}
    config = controller.metadata.config.model_copy(update=here)
    metadata = renewed.controller.metadata.model_copy(update={"config": config})
    return replace(renewed, controller=replace(renewed.controller, metadata=metadata))


class _Executing:
    """Executes the settings of a controller on requests of a workload."""

    def __init__(
        self, controller: Controller, workload: Workload, seed: int, clock: Clock | None, progress: Progress
    ) -> None:
        self._space, self._metric = controller.space, controller.metric
        self._workload, self._seed, self._progress = workload, seed, progress
        config, model = workload.config, workload.vlm.model
        self._trials: list[Trial] = []
        self._runner = TrialRunner(
            model=model,
            processor=workload.vlm.processor,
            quality=None,  # it is not touched
            full=self._space.full,
            max_new_tokens=config.measure.max_new_tokens,
            clock=clock or clock_for(model.device),
            seed=seed,
            keep=self._trials.append,
            anchor_every_s=float("inf"),
            conditions=workload.conditions().fingerprint,
            sample=config.measure.sample,
        )

    @property
    def _executed(self) -> int:
        return sum(len(trial.executions) for trial in self._trials)

    def at_most(self, most: int) -> list[tuple[Request, Sequence[Execution]]]:
        """Warm up, then ``full`` and a few others on one request after the other."""
        self._progress.begin("calibrate", executions(most))
        try:
            return self._measured(most)
        finally:
            self._progress.end(f"{self._executed} executions")

    def _measured(self, most: int) -> list[tuple[Request, Sequence[Execution]]]:
        samples = self._workload.dataset.split("validation")
        self._warm_up(samples[0], most // _WARMING)
        failures, measured = Failures(self._space), list[tuple[Request, Sequence[Execution]]]()
        for index, group in enumerate(calibrated_settings(self._space, most, self._seed)):
            count = min(len(group), most - self._executed)
            if count < 2:
                break
            request = self._runner.request(samples[index % len(samples)])
            trial = self._runner.run("calibrate", index, request, self._settings(failures, group)[:count])
            failures.add(trial)
            measured.append((request, trial.executions))
            self._progress.advance(self._executed / most, f"{index + 1} requests")
        return measured

    def _settings(self, failures: Failures, group: Sequence[Setting]) -> list[Setting]:
        """``full``, what has just failed, to see whether it keeps failing, and the others of a group."""
        streaks = zip(self._space.settings, failures.streaks, strict=True)
        again = [setting for setting, streak in streaks if 0 < streak < IN_A_ROW]
        legal = set(failures.legal_settings)
        return [setting for setting in dict.fromkeys([self._space.full, *again, *group]) if setting in legal]

    def _warm_up(self, sample: TrialInput, most: int) -> None:
        """See that what the controller counts in can be measured, and pay for what a value's first execution pays for.

        Raises:
            MeasurementError: it cannot.
        """
        measure = self._workload.config.measure.model_copy(update={"on_unmeasured": "total"})
        config = self._workload.config.model_copy(update={"measure": measure})
        source = decide_source(self._runner, replace(self._workload, config=config), None)
        if self._metric == "total_ms":
            self._runner.source = "total_only"
        elif source == "total_only":
            timing = self._trials[-1].executions[0].timing
            raise MeasurementError(
                f"the controller counts in {self._metric}, which cannot be seen here "
                f"({'' if timing is None else timing.unseen}); name the parts with --set model.layout.PART=PATH"
            )
        request = self._runner.request(sample)
        values = alone(self._space)[1:][: max(most - self._executed, 0)]
        for index, setting in enumerate(values, start=self._executed):
            self._runner.run("warmup", index, request, [setting])
