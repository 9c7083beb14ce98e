"""How the latency of ``full`` drifts: a smooth curve through the anchors with its interval. Knows no torch.

The logarithm of an anchor's latency is taken to be

    level(t) + slope * log(tokens / reference tokens) + noise

The level is a random walk. The slope takes out what samples differ in because one has more input tokens than another;
it is learned alongside. Noise has heavy tails (Student t), so that a spike moves the level by little (Meinhold and
Singpurwalla, Robustification of Kalman filter models, 1989). How noisy the machine is and how fast it drifts is not
assumed: a Kalman filter runs for each pair of a grid, and each counts by how well it foretold the last anchors (dynamic
model averaging: Raftery, Karny and Ettler, Online prediction under model uncertainty, 2010). The last anchor does not
count yet: a lone spike would lend weight to the filters that follow it. A level that steps is followed within a few
anchors, because then the filters that allow for it have foretold better.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronostat.records import Estimate, LatencyMetric, Trial

Floats = NDArray[np.float64]

_NOISE = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32])  # scale of the noise of log latency
_PACE = np.array([0.0001, 0.0005, 0.002, 0.008, 0.03, 0.1])  # deviation of the level after a second
_TAIL = 4.0  # degrees of freedom of the noise
_MEMORY = 0.95  # weight that a prediction keeps with each later anchor
_START_DEVIATION = (0.5, 1.0)  # of level and slope before the first anchor
_NORMAL_95 = 1.959964


class Anchor(NamedTuple):
    """One execution of ``full``.

    Attributes:
        at_s: when, on one time line.
        latency_ms: the run's metric.
        tokens: of the input, image placeholders included; None if not known.
    """

    at_s: float
    latency_ms: float
    tokens: int | None


class Step(NamedTuple):
    """All filters around one anchor, for K pairs of noise and pace.

    Attributes:
        predicted: mean of level and slope before it, shape [K, 2].
        predicted_covariance: shape [K, 2, 2].
        mean: after it, shape [K, 2].
        covariance: shape [K, 2, 2].
        likelihood: log-likelihood of the anchor, shape [K].
    """

    predicted: Floats
    predicted_covariance: Floats
    mean: Floats
    covariance: Floats
    likelihood: Floats


class _Filters:
    """A Kalman filter of level and slope for every pair of noise and pace."""

    def __init__(self) -> None:
        noise, pace = (grid.ravel() for grid in np.meshgrid(_NOISE, _PACE))
        self._scale_squared, self._pace_squared = noise**2, pace**2  # [K]
        self.mean = np.zeros((len(noise), 2))
        self.covariance = np.tile(np.diag(np.square(_START_DEVIATION)), (len(noise), 1, 1))
        self.likelihood = np.zeros(len(noise))  # of the anchors but the last, forgetting
        self._last_likelihood = np.zeros(len(noise))
        self.at_s: float | None = None

    def level_variance(self, at_s: float) -> Floats:
        """Variance of the level at a time that is not before the last anchor, shape [K]."""
        return self.covariance[:, 0, 0] + self._pace_squared * self._seconds_to(at_s)

    def update(self, at_s: float, log_latency: float, log_tokens: float) -> Step:
        """Take one anchor."""
        predicted, spread = self.mean, self.covariance.copy()
        spread[:, 0, 0] = self.level_variance(at_s)
        row = np.array([1.0, log_tokens])
        toward = spread @ row  # [K, 2]
        explained = toward @ row
        surprise = log_latency - predicted @ row
        squared = surprise**2 / (explained + self._scale_squared)
        weight = np.minimum(1.0, (_TAIL + 1) / (_TAIL + squared))  # of a Student t: a spike counts for little
        gain = toward / (explained + self._scale_squared / weight)[:, None]
        likelihood = -0.5 * np.log(explained + self._scale_squared) - (_TAIL + 1) / 2 * np.log1p(squared / _TAIL)
        self.mean = predicted + gain * surprise[:, None]
        self.covariance = spread - gain[:, :, None] * toward[:, None, :]
        self.likelihood = _MEMORY * (self.likelihood + self._last_likelihood)
        self._last_likelihood = likelihood
        self.at_s = at_s
        return Step(predicted, spread, self.mean, self.covariance, likelihood)

    def _seconds_to(self, at_s: float) -> float:
        return 0.0 if self.at_s is None else max(at_s - self.at_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What drift is relative to: ``full`` as it was in the calibration.

    Attributes:
        full_ms: its latency.
        tokens: median input tokens of the samples it was measured on; None if not known.
    """

    full_ms: float
    tokens: float | None = None

    def log_latency(self, anchor: Anchor) -> float:
        """Logarithm of the anchor's latency relative to the calibration."""
        return math.log(anchor.latency_ms / self.full_ms)

    def log_tokens(self, anchor: Anchor) -> float:
        """Logarithm of the anchor's input tokens relative to those of the calibration; 0 where they are not known."""
        return math.log(anchor.tokens / self.tokens) if anchor.tokens and self.tokens else 0.0


class DriftTracker:
    """The latency of ``full`` relative to the calibration, from the anchors so far: what training uses.

    Args:
        reference: the calibration.
        metric: the latency that counts.
    """

    def __init__(self, reference: Reference, metric: LatencyMetric) -> None:
        self.reference = reference
        self._metric: LatencyMetric = metric
        self._filters = _Filters()
        self._line = TimeLine()

    def at(self, started_s: float) -> Estimate:
        """Drift at a time that is not before the last anchor, from what lies before; 1 is "as in the calibration".

        Args:
            started_s: as in ``Trial.started_s``.
        """
        at_s = self._line.place(started_s)
        filters = self._filters
        return _estimate(filters.mean[:, 0], filters.level_variance(at_s), _shares(filters.likelihood))

    def add(self, trial: Trial) -> None:
        """Take the anchor of a trial, if it has one that was measured."""
        found = anchor_of(trial, self._metric, self._line.place(trial.started_s))
        if found is not None:
            self._filters.update(found.at_s, self.reference.log_latency(found), self.reference.log_tokens(found))


class Pace:
    """How fast a machine is now, relative to a calibration, from executions under whatever setting.

    What an execution took over what was forecast of it takes the place of an anchor's latency. At the calibration
    forecasts are right on average.

    Args:
        at_s: when that was; times are of one clock.
    """

    def __init__(self, at_s: float) -> None:
        self._filters = _Filters()
        self._filters.update(at_s, 0.0, 0.0)

    def add(self, at_s: float, over_forecast: float) -> None:
        """Take what an execution took as a multiple of its forecast."""
        self._filters.update(at_s, math.log(over_forecast), 0.0)

    def at(self, at_s: float) -> Estimate:
        """Latencies at a time that is not before the last one that was added, as a multiple of the calibration's."""
        filters = self._filters
        return _estimate(filters.mean[:, 0], filters.level_variance(at_s), _shares(filters.likelihood))


class TimeLine:
    """Lays the times of processes that worked on one run one after the other end to end."""

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._last_s = 0.0

    def place(self, started_s: float) -> float:
        """Seconds since the first process began; a time before the last one belongs to the next process."""
        if started_s < self._last_s:
            self._offset_s += self._last_s
        self._last_s = started_s
        return self._offset_s + started_s


def smoothed(anchors: Sequence[Anchor], reference: Reference) -> list[Estimate]:
    """Drift at each anchor, from those before and after it: what the report shows.

    Rauch, Tung and Striebel's smoother for every pair of noise and pace; each counts by how well it foretold the
    anchors around. Between two anchors the mean of a random walk is a straight line.
    """
    filters = _Filters()
    steps = [filters.update(a.at_s, reference.log_latency(a), reference.log_tokens(a)) for a in anchors]
    if not steps:
        return []
    mean, covariance = steps[-1].mean, steps[-1].covariance
    levels, variances = [mean[:, 0]], [covariance[:, 0, 0]]
    for step, following in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
        back = np.linalg.solve(following.predicted_covariance, step.covariance).transpose(0, 2, 1)
        mean = step.mean + np.einsum("kij,kj->ki", back, mean - following.predicted)
        change = back @ (covariance - following.predicted_covariance) @ back.transpose(0, 2, 1)
        covariance = step.covariance + change
        levels.append(mean[:, 0])
        variances.append(covariance[:, 0, 0])
    shares = _shares(_around(np.array([step.likelihood for step in steps])))
    return [_estimate(*each) for each in zip(reversed(levels), reversed(variances), shares, strict=True)]


def _around(likelihoods: Floats) -> Floats:
    """Log-likelihoods [n, K] summed over the neighbours of each anchor, forgetting on both sides."""
    before, after = np.zeros_like(likelihoods), np.zeros_like(likelihoods)
    for i in range(1, len(likelihoods)):
        before[i] = _MEMORY * (before[i - 1] + likelihoods[i - 1])
        after[-1 - i] = _MEMORY * (after[-i] + likelihoods[-i])
    return before + likelihoods + after


def _shares(likelihood: Floats) -> Floats:
    """How much each of the filters counts, summing to 1 over the last axis."""
    weights = np.exp(likelihood - likelihood.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _estimate(levels: Floats, variances: Floats, shares: Floats) -> Estimate:
    """The mixture of the filters as a factor with its 95 % interval; all of shape [K]."""
    level = float(shares @ levels)
    half = _NORMAL_95 * math.sqrt(float(shares @ (np.maximum(variances, 0.0) + (levels - level) ** 2)))
    return Estimate(point=math.exp(level), low=math.exp(level - half), high=math.exp(level + half))


def anchor_of(trial: Trial, metric: LatencyMetric, at_s: float) -> Anchor | None:
    """The anchor of a trial; None if it has none, or one that failed."""
    execution = None if trial.anchor is None else trial.executions[trial.anchor]
    if execution is None or execution.timing is None:
        return None
    return Anchor(at_s, execution.latency_ms(metric), execution.prompt_tokens)


def reference_of(trials: Iterable[Trial], metric: LatencyMetric, full_ms: float) -> Reference:
    """The calibration as the reference of drift."""
    found = (anchor_of(trial, metric, trial.started_s) for trial in trials)
    tokens = [anchor.tokens for anchor in found if anchor is not None and anchor.tokens is not None]
    return Reference(full_ms=full_ms, tokens=float(np.median(tokens)) if tokens else None)
