"""Intervals that may be looked at again and again, for arms that run in random order. No torch, no clock.

Two arms that run in random order are exchangeable if they cost the same, whatever drift, steps or spikes the machine
has: what happened to one could as well have happened to the other. So the difference that was seen is compared with
those that the other orders would have shown, and the values by which one arm has to be changed for the two to look
alike are an interval for the true difference. Nothing is assumed about the shape of the noise (Fisher's randomization
test, inverted; Pitman 1937; Lehmann and Romano, Testing Statistical Hypotheses, 2005, section 5.10 to 5.12).

* Arms in blocks of m repeats each, all of a block in random order: ``block_interval``. The difference is that of the
  means of each arm's faster half, since noise of a machine only adds: benchmarks/misranking/ has the comparison.
* Arms that run once on each sample: ``sample_interval``, Wilcoxon's signed ranks of the differences within samples
  (Hodges and Lehmann, Estimates of location based on rank tests, 1963).

Looking again and again: each look spends a part of alpha (Lan and DeMets, Discrete sequential boundaries for clinical
trials, 1983; repeated intervals: Jennison and Turnbull 1989). As much of alpha is spent as of the limit, executions or
time, whichever it is (Kim and DeMets, Design and analysis of group sequential tests based on the type I error spending
rate function, 1987, with rho = 1), and the rest at the last look. So all intervals together miss with a probability of
at most alpha, whenever and why ever one stops. How much of a limit has passed does not say which arm is the faster one,
since both count in it. Looks are spaced geometrically.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronostat.records import Estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

FIRST_LOOK = 5  # pairs; fewer cannot be told from chance at the level of the first look
FIRST_LOOK_AT_SAMPLES = 8  # signs alone tell less than orders of a block
_GROWTH = 1.5  # from one look to the next
_MOST_ORDERS = 4_000  # of more, so many are drawn
_RESOLUTION = 1e-4  # of bounds, in the unit of the values: 0.01 % for logarithms
_FIRST_STEP = 0.02  # from the point to a bound
_EXACT_PAIRS = 200  # beyond which the signed-rank distribution is taken as normal
_TINY = 1e-12  # differences that rounding makes


class Block(NamedTuple):
    """Repeats of both arms that ran together in random order: logarithms of latencies, or other additive values."""

    arm: Sequence[float]
    partner: Sequence[float]


def is_look(pairs: int, last: int, first: int = FIRST_LOOK) -> bool:
    """Whether to look after ``pairs`` pairs, the last look having been after ``last`` (0: there was none)."""
    return pairs >= max(first, math.ceil(_GROWTH * last))


def look_level(share: float, spent: float, alpha: float) -> float:
    """What a look may spend of ``alpha``; all looks together spend at most ``alpha``.

    Args:
        share: of the limit that has passed; 1 at the last look.
        spent: the share at the last look that could show something; 0: there was none.
        alpha: for all looks.
    """
    return alpha * max(0.0, min(1.0, share) - spent)


def shows_something(interval: Estimate) -> bool:
    """Whether a look had enough repeats for a bound at its level; one that had not spends nothing.

    Args:
        interval: of a ratio.
    """
    return interval.low > 0 or interval.high < math.inf


def narrowed(interval: Estimate, before: Estimate | None) -> Estimate:
    """An interval with what earlier looks left of it, since all of them hold at once; alone if nothing is left."""
    if before is None:
        return interval
    low, high = max(interval.low, before.low), min(interval.high, before.high)
    return Estimate(point=interval.point, low=low, high=high) if low <= high else interval


def block_interval(blocks: Sequence[Block], alpha: float) -> Estimate:
    """Difference of the means of the faster halves of both arms, with its interval of level ``1 - alpha``.

    Changing one arm by more never makes its difference overtake that of another order, so each bound is found by
    bisection: from the difference in the order that ran, the values of the arm less d, to those in all orders of the
    same block sizes. Where a smaller share is asked for than one of the drawn orders is, the order that ran has to be
    the most extreme of all, and as far from the others as their normal distribution asks for.

    Args:
        blocks: a block without one of the arms adds nothing.
        alpha: the probability with which the interval may miss, both sides together.

    Returns:
        Bounds of plus and minus infinity if there are too few repeats for this level; NaN without any difference, and
        if a value is NaN.
    """
    blocks = [block for block in blocks if block.arm and block.partner]
    values = np.array([value for block in blocks for side in block for value in side], dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        return Estimate(point=math.nan, low=math.nan, high=math.nan)
    orders = _orders(tuple((len(block.arm), len(block.partner)) for block in blocks))
    point = float(_half_differences(values, orders[:, :1])[0])
    if alpha <= 0:
        return Estimate(point=point, low=-math.inf, high=math.inf)
    low = _bound(values, orders, alpha / 2, point)
    high = -_bound(-values, orders, alpha / 2, -point, slowest=True)
    return Estimate(point=point, low=low, high=high)


def _bound(values: Floats, orders: Labels, tail: float, point: float, *, slowest: bool = False) -> float:
    """The largest change of the arm below ``point`` at which the order that ran is among the ``tail`` of all orders."""
    ran, drawn = orders[:, 0], orders.shape[1] == _MOST_ORDERS

    def is_extreme(change: float) -> bool:
        differences = _half_differences(values - change * ran, orders, slowest=slowest)
        reached = np.count_nonzero(differences >= differences[0] - _TINY)  # by the order that ran at least
        if drawn and tail * _MOST_ORDERS < 1:
            far = differences.mean() + NormalDist().inv_cdf(1 - tail) * differences.std()
            return bool(reached == 1 and differences[0] >= far)
        return bool(reached <= tail * len(differences) * (1 + _TINY))

    outside = float(values[ran].min() - values[~ran].max()) - 1.0
    if not is_extreme(outside):
        return -math.inf
    inside, step = point, _FIRST_STEP
    while inside - step > outside and not is_extreme(inside - step):
        inside, step = inside - step, 2 * step
    outside = max(outside, inside - step)
    while inside - outside > _RESOLUTION:
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if is_extreme(middle) else (outside, middle)
    return outside


def _half_differences(values: Floats, orders: Labels, *, slowest: bool = False) -> Floats:
    """For each order the mean of the arm's faster half less that of the partner's.

    Args:
        values: shape [n].
        orders: which of the values are the arm's, shape [n, R].
        slowest: take the larger half instead, for values with their signs turned.

    Returns:
        Shape [R].
    """
    ranked = np.argsort(-values if slowest else values, kind="stable")
    values, orders = values[ranked], orders[ranked]
    n, arm_n = len(values), int(orders[:, 0].sum())
    arm_half, partner_half = (arm_n + 1) // 2, (n - arm_n + 1) // 2
    arm_rank = np.cumsum(orders, axis=0, dtype=np.int16)
    partner_rank = np.arange(1, n + 1, dtype=np.int16)[:, None] - arm_rank
    arm = values @ (orders & (arm_rank <= arm_half)) / arm_half
    return arm - values @ (~orders & (partner_rank <= partner_half)) / partner_half


@lru_cache(maxsize=16)
def _orders(sizes: tuple[tuple[int, int], ...]) -> Labels:
    """Orders that blocks of these sizes could have run in, each as likely as the others; the first is arm, partner.

    Returns:
        Which positions are the arm's, shape [n, R]: all orders, or the first and many that are drawn, which keeps the
        level exact (Phipson and Smyth, Permutation p-values should never be zero, 2010).
    """
    if math.prod(math.comb(arm + partner, arm) for arm, partner in sizes) < _MOST_ORDERS:
        each = [_block_orders(*size) for size in sizes]
        return np.array([np.concatenate(parts) for parts in itertools.product(*each)]).T.copy()
    rng = np.random.default_rng(0)  # drawn apart from the data
    first = [np.arange(arm + partner)[:, None] < arm for arm, partner in sizes]
    drawn = [rng.permuted(np.repeat(block, _MOST_ORDERS - 1, axis=1), axis=0) for block in first]
    return np.concatenate([np.concatenate(first), np.concatenate(drawn)], axis=1)


def _block_orders(arm: int, partner: int) -> list[Labels]:
    """All choices of ``arm`` positions, the first ones first."""
    positions = np.arange(arm + partner)
    return [np.isin(positions, chosen) for chosen in itertools.combinations(range(arm + partner), arm)]


def sample_interval(differences: Sequence[float], alpha: float) -> Estimate:
    """Median of the Walsh averages with its interval of level ``1 - alpha``, for one difference per sample.

    Returns:
        Bounds of plus and minus infinity if there are too few samples for this level; NaN without any, and if one is
        NaN.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        return Estimate(point=math.nan, low=math.nan, high=math.nan)
    first, second = np.triu_indices(len(values))
    averages = np.sort((values[first] + values[second]) / 2)
    rank = _signed_rank_tail(len(values), alpha / 2) if alpha > 0 else 0
    low, high = (float(averages[rank - 1]), float(averages[-rank])) if rank else (-math.inf, math.inf)
    return Estimate(point=float(np.median(averages)), low=low, high=high)


@lru_cache(maxsize=256)
def _signed_rank_tail(n: int, tail: float) -> int:
    """The largest rank r for which the signed-rank statistic of ``n`` pairs is below r with at most ``tail``; or 0.

    Every subset of the ranks 1 to n is equally likely to be that of the positive differences.
    """
    if n > _EXACT_PAIRS:
        spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(0, math.floor(n * (n + 1) / 4 + NormalDist().inv_cdf(tail) * spread))
    probabilities = np.ones(1)
    for rank in range(1, n + 1):
        without, nothing = probabilities / 2, np.zeros(rank)
        probabilities = np.concatenate([without, nothing]) + np.concatenate([nothing, without])
    return int(np.searchsorted(np.cumsum(probabilities), tail * (1 + _TINY), side="right"))


def bounded_mean_interval(values: Sequence[float], low: float, high: float, alpha: float) -> Estimate:
    """Mean of bounded values with an interval that may be looked at after every value.

    For quality in [0, 1] a paired difference lies in [-1, 1]. The predictable plug-in empirical-Bernstein confidence
    sequence (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024, theorem 2), which
    holds for all numbers of values at once; its centre, a weighted mean, is the point.

    Args:
        values: in the order they were seen.
        low: no value can be below.
        high: no value can be above.
        alpha: the probability with which any of the intervals may miss.
    """
    x = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    n = len(x)
    if not n or np.isnan(x).any():
        return Estimate(point=math.nan, low=math.nan, high=math.nan)
    t = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (t + 1)
    before, spread_before = np.concatenate([[0.5], means[:-1]]), np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (spread_before * t * np.log(1 + t))), 0.5)
    costs = (x - before) ** 2 * (-np.log1p(-bets) - bets)
    centre = float(np.sum(bets * x) / np.sum(bets))
    half = float((math.log(2 / alpha) + np.sum(costs)) / np.sum(bets))
    scale = high - low
    return Estimate(
        point=low + scale * centre,
        low=low + scale * max(0.0, centre - half),
        high=low + scale * min(1.0, centre + half),
    )
