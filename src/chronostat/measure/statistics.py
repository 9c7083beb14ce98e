"""Intervals for what was measured on the same samples: the paired bootstrap, and the permutation test."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chronostat.records import Estimate

Floats = NDArray[np.float64]

RESAMPLES = 4_000
PERMUTATIONS = 2_000
_CONFIDENCE = 0.95


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

    def mean(self, values: Floats) -> Estimate:
        """Mean of one value per sample, shape [n], with its 95 % interval; NaN bounds for fewer than 2 samples."""
        point = float(np.mean(values))
        if self._n < 2:
            return Estimate(point=point, low=float("nan"), high=float("nan"))
        tail = (1 - _CONFIDENCE) / 2
        low, high = np.quantile(self._counts @ values / self._n, [tail, 1 - tail])  # whole counts: a gain of 0 is 0
        return Estimate(point=point, low=float(low), high=float(high))


def weighted_quantile(values: Floats, weights: Floats, q: float) -> float:
    """The smallest value that at least a share ``q`` of the weight lies at or below.

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
