"""Before training: can the stages be seen, what is executed to know the settings, and which budgets can bind."""

from collections.abc import Sequence

import numpy as np

from chronostat.errors import MeasurementError
from chronostat.evidence.latency import Forecast
from chronostat.knobs.space import ActionSpace
from chronostat.policy.frontier import Requests
from chronostat.records import Budget, Execution, LatencyMetric, Setting, Source, Trial

BUDGETS_PER_KIND = 8
LEAST_SAMPLES = 2  # of the calibration: what one request takes may be its own
GROUP = 6  # settings on each sample, full among them: many requests teach more than many settings of one


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


def calibrated_settings(space: ActionSpace, executions: int, seed: int) -> list[list[Setting]]:
    """Settings to execute on each sample of the calibration, about as many as ``executions`` altogether.

    ``full`` on each, since everything is a fraction of it, and all others in turn: first those that turn one knob, so
    that what the rest takes can be forecast where there are not executions enough for all of them.
    """
    single = alone(space)[1:]
    others = [setting for setting in space.settings[1:] if setting not in set(single)]
    rng = np.random.default_rng([seed, len(space)])
    first = [group[i] for group in (single, others) for i in rng.permutation(len(group)).tolist()]
    samples = max(executions // min(GROUP, len(space)), LEAST_SAMPLES)
    return [_group(space.settings, first, index, seed) for index in range(samples)]


def alone(space: ActionSpace) -> list[Setting]:
    """``full``, then each other value of each knob with all other knobs full."""
    return [s for s, row in zip(space.settings, space.level_indices, strict=True) if np.count_nonzero(row) <= 1]


def selected_settings(legal: Sequence[Setting], index: int, seed: int) -> list[Setting]:
    """Settings to execute on sample number ``index`` of the selection: ``full`` and others in turn, all alike often.

    Args:
        legal: those that can be chosen, ``full`` first.
        index: of the sample.
        seed: of their order.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(legal) - 1).tolist()
    return _group(legal, [legal[1 + i] for i in order], index, seed + 1)


def _group(settings: Sequence[Setting], first: Sequence[Setting], index: int, seed: int) -> list[Setting]:
    """``full`` and the next few of a round through all others; rounds after the first one are in random order."""
    picked: list[Setting] = []
    for turn in range(index * (GROUP - 1), (index + 1) * (GROUP - 1)):
        if first:
            number, place = divmod(turn, len(first))
            order = (
                np.random.default_rng([seed, number]).permutation(len(first)).tolist() if number else range(len(first))
            )
            picked.append(first[order[place]])
    return list(dict.fromkeys([settings[0], *picked]))


def chances_of(group: Sequence[Setting], settings: int) -> list[float]:
    """Probability of each setting of such a group to be what a draw of the group is, among ``settings`` of them."""
    others = (len(group) - 1) / len(group) / max(settings - 1, 1)
    return [1 / len(group), *[others] * (len(group) - 1)]


def full_ms_of(trials: Sequence[Trial], full: Setting, metric: LatencyMetric) -> float:
    """Median latency of ``full`` in the calibration.

    Raises:
        MeasurementError: it could not be measured; says why.
    """
    executions = [e for trial in trials for e in trial.executions if e.setting == full]
    measured_ms = [e.latency_ms(metric) for e in executions if e.timing is not None]
    if not measured_ms:
        raise MeasurementError(f"full could not be measured: {executions[0].invalid}")
    return float(np.median(measured_ms))


def training_budgets(forecast: Forecast, requests: Requests) -> tuple[Budget, ...]:
    """Means and deadlines spread evenly over what the settings cost here, so that they bind somewhere."""
    means = forecast.mean(requests.prompts, requests.tokens).mean(axis=0)
    low, high = np.quantile(means, [0.05, 0.95]).tolist()
    grid = np.linspace(low, high, BUDGETS_PER_KIND).tolist()
    budgets = [Budget(kind="mean", fraction=fraction) for fraction in grid]
    return (*budgets, *(Budget(kind="deadline", fraction=fraction) for fraction in grid))
