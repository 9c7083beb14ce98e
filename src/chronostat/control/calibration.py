"""Before training: can the stages be seen, what does each setting cost here, and which budgets can bind."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from chronostat.errors import MeasurementError
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Execution, LatencyMetric, Source, Trial
from chronostat.trials import Subject, TrialRunner

ANCHOR_WINDOW = 15  # anchors that the current latency of full is the median of
BUDGETS_PER_KIND = 8


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a short measurement of all settings said.

    Attributes:
        full_ms: median latency of ``full``.
        fractions: mean latency of each setting divided by ``full_ms``, in the order of the space.
        samples: samples that were measured under every setting.
    """

    full_ms: float
    fractions: tuple[float, ...]
    samples: int

    def budgets(self) -> tuple[Budget, ...]:
        """Means and deadlines spread evenly over what the settings cost here, so that they bind somewhere."""
        low, high = np.quantile(self.fractions, [0.05, 0.95])
        grid = np.linspace(low, high, BUDGETS_PER_KIND)
        means = tuple(Budget(kind="mean", fraction=float(fraction)) for fraction in grid)
        return (*means, *(Budget(kind="deadline", fraction=budget.fraction) for budget in means))


class Anchors:
    """The current latency of ``full``: the median of the last measurements."""

    def __init__(self, latencies_ms: Iterable[float] = ()) -> None:
        self.window_ms = deque(latencies_ms, maxlen=ANCHOR_WINDOW)

    def add(self, trial: Trial, metric: LatencyMetric) -> None:
        """Take the anchor of a trial, if it has one that was measured."""
        if trial.anchor is not None and trial.executions[trial.anchor].timing is not None:
            self.window_ms.append(trial.executions[trial.anchor].latency_ms(metric))

    @property
    def full_ms(self) -> float:
        """Median in milliseconds.

        Raises:
            MeasurementError: none was measured yet.
        """
        if not self.window_ms:
            raise MeasurementError("full was not measured yet, so latencies have nothing to be a fraction of")
        return float(np.median(self.window_ms))


def check_source(probe: Execution, on_unmeasured: str) -> Source:
    """The source of the whole run, from one execution of ``full``.

    Raises:
        MeasurementError: the execution failed, or its stages were not seen and ``on_unmeasured`` is ``"stop"``.
    """
    if probe.timing is None:
        raise MeasurementError(f"the start-up check failed: {probe.invalid}")
    if probe.timing.source != "measured" and on_unmeasured == "stop":
        raise MeasurementError(
            f"the stages of this model cannot be seen ({probe.timing.unseen}) and measure.on_unmeasured = 'stop'; name "
            "the parts with model.layout, or allow measure.on_unmeasured = 'total'"
        )
    return probe.timing.source


def calibrate(
    runner: TrialRunner,
    space: ActionSpace,
    subjects: Sequence[Subject],
    metric: LatencyMetric,
    seconds: float,
    advance: Callable[[float, str], None] = lambda fraction, note: None,
) -> Calibration:
    """Measure all settings on one sample after the other until the time is over.

    Args:
        runner: executes them.
        space: the settings.
        subjects: samples or ready batches.
        metric: the latency that counts.
        seconds: no sample begins after this time.
        advance: told the share that is done, and a note for people, after each sample.

    Raises:
        MeasurementError: some setting could not be measured on any sample; says which and why.
    """
    start_s = runner.elapsed_s
    trials: list[Trial] = []
    for index, subject in enumerate(subjects):
        trials.append(runner.run("calibrate", index, runner.request(subject), space.settings))
        used = (runner.elapsed_s - start_s) / seconds
        advance(used, f"{len(trials)} samples under {len(space)} settings")
        if used >= 1:
            break
    anchors = Anchors()
    for trial in trials:
        anchors.add(trial, metric)
    if not anchors.window_ms:
        raise MeasurementError(f"full could not be measured: {trials[0].executions[trials[0].draws[0]].invalid}")
    full_ms = anchors.full_ms
    fractions = tuple(_mean_fraction(trials, i, metric, full_ms) for i in range(len(space)))
    return Calibration(full_ms=full_ms, fractions=fractions, samples=len(trials))


def _mean_fraction(trials: Sequence[Trial], position: int, metric: LatencyMetric, full_ms: float) -> float:
    executions = [trial.executions[trial.draws[position]] for trial in trials]
    measured_ms = [execution.latency_ms(metric) for execution in executions if execution.timing is not None]
    if not measured_ms:
        raise MeasurementError(
            f"setting {executions[0].setting} failed on all {len(executions)} samples: {executions[0].invalid}; "
            "leave its value out of the knobs section"
        )
    return float(np.mean(measured_ms)) / full_ms
