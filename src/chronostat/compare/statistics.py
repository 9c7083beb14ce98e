"""Intervals for what was measured on the same samples: the paired bootstrap, and the permutation test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from chronostat.records import Estimate

Floats = NDArray[np.float64]

RESAMPLES = 4_000
PERMUTATIONS = 2_000
_CONFIDENCE = 0.95
_ALIKE = 1e-9  # values that differ by less differ by rounding


class PairedBootstrap:
    """Percentile intervals of means over samples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

    Every quantity is resampled with the same draws of samples, so a difference of two quantities of one sample stays
    paired.

    Args:
        samples: n.
        seed: draws the resamples.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self._n = samples
        counts = np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), size=RESAMPLES)
        self._counts = counts.astype(np.float64)  # [R, n]: how often each sample was drawn

    def mean(self, values: Floats, where: NDArray[np.bool_] | None = None) -> Estimate:
        """Mean of one value per sample, shape [n], with its 95 % interval.

        The bounds are NaN if fewer than 2 samples count, the point too if none does.

        Args:
            values: shape [n].
            where: the samples that count, shape [n]; all of them if absent.
        """
        if where is not None and np.count_nonzero(where) < 2:
            point = float(values[where].mean()) if where.any() else math.nan
            return Estimate(point=point, low=math.nan, high=math.nan)
        if where is not None and not where.all():
            return self.ratio(np.where(where, values, 0.0), where.astype(np.float64))
        point = float(np.mean(values))
        if self._n < 2:
            return Estimate(point=point, low=float("nan"), high=float("nan"))
        tail = (1 - _CONFIDENCE) / 2
        low, high = np.quantile(self._counts @ values / self._n, [tail, 1 - tail])  # whole counts: a gain of 0 is 0
        return Estimate(point=point, low=float(low), high=float(high))

    def bounded(self, values: Floats, least: float, most: float, where: NDArray[np.bool_] | None = None) -> Estimate:
        """``mean`` of values that cannot lie outside of two bounds, such as qualities, also where all are alike.

        Then all resamples are alike too and would bound the mean by itself, from two samples as from a thousand. But a
        share of ``1 - 0.025 ** (1 / n)`` of other values stays unseen in n samples with a probability of 2.5 % (Clopper
        and Pearson 1934), and it could lie at either bound.

        Args:
            values: shape [n].
            least: no value can be below.
            most: no value can be above.
            where: the samples that count, shape [n]; all of them if absent.
        """
        estimate, seen = self.mean(values, where), values if where is None else values[where]
        if len(seen) < 2 or np.ptp(seen) > _ALIKE:
            return estimate
        unseen = 1 - ((1 - _CONFIDENCE) / 2) ** (1 / len(seen))
        point = estimate.point
        return Estimate(point=point, low=point - unseen * (point - least), high=point + unseen * (most - point))

    def ratio(self, numerators: Floats, denominators: Floats) -> Estimate:
        """Ratio of two means over the same samples, shape [n] each, with its 95 % interval.

        The bounds are NaN for fewer than 2 samples.

        Only where the mean denominator is clearly not 0 has such a ratio a meaning: look at its own interval first.
        """
        point = float(np.mean(numerators) / np.mean(denominators))
        if self._n < 2:
            return Estimate(point=point, low=float("nan"), high=float("nan"))
        tail = (1 - _CONFIDENCE) / 2
        below = self._counts @ denominators
        drawn = below != 0  # a resample without any denominator has no ratio
        low, high = np.quantile((self._counts[drawn] @ numerators) / below[drawn], [tail, 1 - tail])
        return Estimate(point=point, low=float(low), high=float(high))


def weighted_quantile(values: Floats, weights: Floats, q: float) -> float:
    """The smallest value that at least a share ``q`` of the weight lies at or below.

    Not ``np.quantile(..., weights=..., method="inverted_cdf")``, which has no tolerance for sums that are rounded: the
    mix of two settings in the tests reaches 11.7 of 13 at 12.0, but it says 12.5 (numpy 2.4).

    Args:
        values: shape [n].
        weights: non-negative, shape [n].
        q: in (0, 1].
    """
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    # the weights' sum is rounded: a share of q of it must not be missed by the last bit
    position = int(np.searchsorted(reached, q * reached[-1] * (1 - 1e-12)))
    return float(values[order][position])


def dependence_p_value(groups: Sequence[str], choices: Sequence[int], seed: int) -> float:
    """Permutation test of whether choices depend on groups (Good, Permutation, Parametric and Bootstrap Tests, 2005).

    The statistic is Pearson's chi-square of the table of groups and choices; under independence every assignment of
    groups to choices is equally likely. ``(1 + as extreme) / (1 + permutations)`` is never 0.
    """
    _, rows = np.unique(np.asarray(groups), return_inverse=True)
    _, columns = np.unique(np.asarray(choices), return_inverse=True)
    rng = np.random.default_rng(seed)
    observed = _chi_square(rows, columns)
    extreme = sum(_chi_square(rng.permutation(rows), columns) >= observed * (1 - 1e-12) for _ in range(PERMUTATIONS))
    return (1 + extreme) / (1 + PERMUTATIONS)


def _chi_square(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def mean_interval(values: Floats) -> Estimate:
    """Mean of one difference per sample with Student's 95 % interval, which holds for few samples too.

    Args:
        values: shape [n], n at least 1; NaN bounds for 1.
    """
    from scipy.special import stdtrit

    n, point = len(values), float(values.mean())
    if n < 2:
        return Estimate(point=point, low=math.nan, high=math.nan)
    half = float(stdtrit(n - 1, (1 + _CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(point=point, low=point - half, high=point + half)


def share_interval(count: int, of: int, deviations: float = 1.96) -> Estimate:
    """A share with its interval, of 95 % unless told otherwise (Wilson, JASA 22, 1927); NaN of nothing.

    Args:
        count: how many are so.
        of: how many there are.
        deviations: of a normal variable on each side.
    """
    if not of:
        return Estimate(point=math.nan, low=math.nan, high=math.nan)
    point, scale = count / of, 1 + deviations**2 / of
    middle = (point + deviations**2 / (2 * of)) / scale
    around = deviations * math.sqrt(point * (1 - point) / of + deviations**2 / (4 * of**2)) / scale
    return Estimate(point=point, low=max(middle - around, 0.0), high=min(middle + around, 1.0))


def median_interval(values: Sequence[float]) -> Estimate:
    """Median with its distribution-free interval of at least 95 % from order statistics; NaN bounds below 6 values.

    With n independent values the interval from the k-th smallest to the k-th largest misses the median with
    probability ``2 * P(Binomial(n, 1/2) < k)`` (David and Nagaraja, Order Statistics, 2003, section 7.1).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n, rank, missed = len(ordered), 0, 0.0
    while (missed := missed + 2 * math.comb(n, rank) / 2**n) <= 1 - _CONFIDENCE:
        rank += 1
    low, high = (ordered[rank - 1], ordered[n - rank]) if rank else (np.nan, np.nan)
    return Estimate(point=float(np.median(ordered)), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """What the same arm differs by from itself, measured (A/A).

    Attributes:
        spread: half of all pairs of successive repeats differ by more than this share; NaN below 2 repeats, and if one
            of them is no latency.
        repeats: that it was taken from.
    """

    spread: float
    repeats: int

    def pairs_to_separate(self, difference: float, power: float = 0.9) -> int | None:
        """About how many interleaved pairs tell two arms apart that truly differ by the share ``difference``.

        ``n = ((z(0.975) + z(power)) * s / ln(1 + difference)) ** 2`` with the robust deviation of a pair's log ratio,
        ``s = ln(1 + spread) / z(0.75)`` (Lehmann, Nonparametrics, 1975, section 4.2); None where the spread is unknown.
        """
        if not math.isfinite(self.spread):
            return None
        normal = NormalDist()
        deviation = math.log1p(self.spread) / normal.inv_cdf(0.75)
        z = normal.inv_cdf(1 - (1 - _CONFIDENCE) / 2) + normal.inv_cdf(power)
        return max(1, math.ceil((z * deviation / math.log1p(difference)) ** 2))


def noise_floor(latencies_ms: Sequence[float]) -> NoiseFloor:
    """From repeats of one arm in the order they ran; slow drift cancels between neighbours."""
    values = np.asarray(latencies_ms, dtype=np.float64)
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return NoiseFloor(spread=math.nan, repeats=len(values))
    steps = np.abs(np.diff(np.log(values)))
    return NoiseFloor(spread=float(np.expm1(np.median(steps))), repeats=len(values))
