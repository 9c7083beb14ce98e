"""Before training: can the stages be seen, what does each setting cost here, and which budgets can bind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chronostat.control.failures import Failures
from chronostat.errors import MeasurementError
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Execution, LatencyMetric, Setting, Source, Trial

BUDGETS_PER_KIND = 8


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a short measurement of all settings said.

    Attributes:
        full_ms: median latency of ``full``.
        fractions: mean latency of each setting divided by ``full_ms``, in the order of the space; NaN where every
            execution failed.
        samples: samples that were measured.
        controller_ms: what choosing a setting costs, on average; 0 if it was not measured.
        streaks: how often each setting failed in a row at the end, in the order of the space.
        reasons: why, by position.
    """

    full_ms: float
    fractions: tuple[float, ...]
    samples: int
    streaks: tuple[int, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    controller_ms: float = 0.0

    @property
    def charged(self) -> tuple[float, ...]:
        """``fractions`` with ``controller_ms``: what budgets limit."""
        return tuple(fraction + self.controller_ms / self.full_ms for fraction in self.fractions)

    def budgets(self) -> tuple[Budget, ...]:
        """Means and deadlines spread evenly over what the settings cost here, so that they bind somewhere."""
        low, high = np.nanquantile(self.charged, [0.05, 0.95])
        grid = np.linspace(low, high, BUDGETS_PER_KIND)
        means = tuple(Budget(kind="mean", fraction=float(fraction)) for fraction in grid)
        return (*means, *(Budget(kind="deadline", fraction=budget.fraction) for budget in means))


def check_source(probe: Execution, on_unmeasured: str) -> Source:
    """The source of the whole run, from one execution of ``full``.

    Raises:
        MeasurementError: the execution failed, or its stages were not seen and ``on_unmeasured`` is ``"stop"``.
    """
    if probe.timing is None:
        raise MeasurementError(f"the start-up check failed: {probe.invalid}")
    if probe.timing.source == "measured":
        return "measured"
    if on_unmeasured == "stop":
        raise MeasurementError(
            f"the stages of this model cannot be seen ({probe.timing.unseen}) and measure.on_unmeasured = 'stop'; name "
            "the parts with model.layout, or allow measure.on_unmeasured = 'total'"
        )
    return "estimated" if on_unmeasured == "estimate" else "total_only"


def calibrate(
    runner: TrialRunner,
    space: ActionSpace,
    trial_inputs: Sequence[TrialInput],
    metric: LatencyMetric,
    seconds: float,
    advance: Callable[[float, str], None] = lambda fraction, note: None,
) -> Calibration:
    """Measure all settings on one sample after the other until the time or the samples are over.

    A setting that fails on three samples in a row is not executed any more.

    Args:
        runner: executes them.
        space: the settings.
        trial_inputs: samples or ready batches.
        metric: the latency that counts.
        seconds: no sample begins after this time.
        advance: told the share that is done, and a note for people, after each sample.

    Raises:
        MeasurementError: ``full`` failed three times in a row or could not be measured on any sample; says why.
    """
    start_s = runner.elapsed_s
    trials: list[Trial] = []
    failures = Failures(space)
    for index, trial_input in enumerate(trial_inputs):
        trial = runner.run("calibrate", index, runner.request(trial_input), failures.legal_settings)
        failures.add(trial)
        trials.append(trial)
        used = (runner.elapsed_s - start_s) / seconds
        note = f"{len(trials)} samples under {len(failures.legal_settings)} settings"
        advance(max(used, len(trials) / len(trial_inputs)), note)
        if used >= 1:
            break
    full_ms = [e.latency_ms(metric) for e in _executions(trials, space.full) if e.timing is not None]
    if not full_ms:
        raise MeasurementError(f"full could not be measured: {_executions(trials, space.full)[0].invalid}")
    median_ms = float(np.median(full_ms))
    return Calibration(
        full_ms=median_ms,
        fractions=tuple(_mean_fraction(trials, setting, metric, median_ms) for setting in space.settings),
        samples=len(trials),
        streaks=failures.streaks,
        reasons=failures.reasons,
    )


def _executions(trials: Sequence[Trial], setting: Setting) -> list[Execution]:
    return [execution for trial in trials for execution in trial.executions if execution.setting == setting]


def _mean_fraction(trials: Sequence[Trial], setting: Setting, metric: LatencyMetric, full_ms: float) -> float:
    measured_ms = [e.latency_ms(metric) for e in _executions(trials, setting) if e.timing is not None]
    return float(np.mean(measured_ms)) / full_ms if measured_ms else float("nan")
