"""Intervals that may be looked at again and again, against enumeration by hand."""

import itertools
import math

import numpy as np
import pytest

from chronostat.compare.sequential import (
    FIRST_LOOK,
    Block,
    block_interval,
    bounded_mean_interval,
    is_look,
    look_level,
    sample_interval,
    shows_something,
)
from chronostat.records import Estimate


def low_half(values):
    half = sorted(values)[: (len(values) + 1) // 2]
    return sum(half) / len(half)


def share_as_extreme(arm, partner, change):
    """Of all orders of one block, by plain enumeration: the share whose difference reaches that of the one that ran."""
    values = [value - change for value in arm] + list(partner)
    everything = range(len(values))
    ran = low_half(values[: len(arm)]) - low_half(values[len(arm) :])
    differences = [
        low_half([values[i] for i in chosen]) - low_half([values[i] for i in everything if i not in chosen])
        for chosen in itertools.combinations(everything, len(arm))
    ]
    return np.mean([difference >= ran - 1e-12 for difference in differences])


def test_point_is_the_difference_of_the_faster_halves():
    # arm: (1.2 + 1.0) / 2 = 1.1 of 1.0, 1.2, 7, 9; partner: (0 + 0.1 + 0.2) / 3 = 0.1 of 0, 0.1, 0.2, 5, 6
    estimate = block_interval([Block([7, 1.2, 1.0, 9], [0, 5, 0.1, 0.2, 6])], 0.05)
    assert estimate.point == pytest.approx(1.0)


def test_bounds_are_where_the_order_that_ran_stops_being_extreme():
    arm, partner = [1.31, 1.02, 1.17, 1.84], [1.0, 0.93, 1.22, 1.05]
    estimate = block_interval([Block(arm, partner)], 0.2)
    for bound, change in ((estimate.low, -2e-4), (estimate.low, 2e-4)):
        assert (share_as_extreme(arm, partner, bound + change) <= 0.1) == (change < 0)
    assert estimate.low < estimate.point < estimate.high
    assert block_interval([Block(partner, arm)], 0.2).low == pytest.approx(-estimate.high, abs=2e-4)


@pytest.mark.parametrize(
    ("sizes", "alpha", "bounded"),
    [
        ([(3, 3)], 0.05, False),  # 1 of C(6, 3) = 20 orders is 5 %, each side has 2.5 %
        ([(3, 3)], 0.1, True),
        ([(4, 4)], 2 / 70, True),  # 1 of 70 on each side
        ([(4, 4)], 1.9 / 70, False),
        ([(3, 3), (3, 3)], 2 / 400, True),  # 20 * 20 orders
        ([(3, 3), (3, 2)], 1.9 / 200, False),  # 20 * 10 orders
    ],
)
def test_too_few_orders_give_no_interval(sizes, alpha, bounded):
    rng = np.random.default_rng(0)
    blocks = [Block(rng.normal(size=arm).tolist(), rng.normal(size=partner).tolist()) for arm, partner in sizes]
    estimate = block_interval(blocks, alpha)
    assert math.isfinite(estimate.low) == math.isfinite(estimate.high) == bounded


def test_level_holds_exactly_over_all_orders_of_the_same_values():
    # whatever the values are: of the 20 * 6 orders of two equal arms at most 5 % have an interval without 0
    values = np.array([1.0, 1.1, 5.0, 1.3, 1.25, 1.05, 2.0, 2.1, 9.0, 2.05])
    halves = [(values[:6], 3), (values[6:], 2)]
    choices = [
        [np.isin(np.arange(2 * m), chosen) for chosen in itertools.combinations(range(2 * m), m)] for _, m in halves
    ]
    misses = 0
    for sides in itertools.product(*choices):
        blocks = [
            Block(half[side].tolist(), half[~side].tolist()) for (half, _), side in zip(halves, sides, strict=True)
        ]
        estimate = block_interval(blocks, 0.05)
        misses += not estimate.low <= 0 <= estimate.high
    assert 0.02 * 120 <= misses <= 0.05 * 120


def test_drawn_orders_stand_in_for_too_many():
    rng = np.random.default_rng(3)
    blocks = [Block((rng.normal(size=3) + 1).tolist(), rng.normal(size=3).tolist()) for _ in range(12)]
    estimate = block_interval(blocks, 0.05)
    assert estimate.low < 1 < estimate.high
    assert estimate == block_interval(blocks, 0.05)  # drawn alike each time


@pytest.mark.parametrize(("seed", "level"), [(347, 0.05 * (2 / 24 - 2 / 36)), (1614, 4e-4)])
def test_a_level_that_few_orders_reach_holds_where_noise_has_two_modes(seed, level):
    # equal arms that a normal distribution of the orders calls different; of 4,000 orders 2.8 and 0.8 may reach a bound
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((12, 6)) < 0.5, 0.2, 0.0) + 0.005 * rng.standard_normal((12, 6))
    ran = low_half(values[:, :3].ravel()) - low_half(values[:, 3:].ravel())
    others = [rng.permuted(values, axis=1) for _ in range(2_000)]
    reached = np.mean([low_half(o[:, :3].ravel()) - low_half(o[:, 3:].ravel()) >= ran for o in others])
    assert reached > 10 * level / 2
    estimate = block_interval([Block(row[:3].tolist(), row[3:].tolist()) for row in values], level)
    assert estimate.low < 0 < estimate.high


def test_beyond_all_drawn_orders_the_interval_still_narrows():
    rng = np.random.default_rng(0)
    blocks = [Block((rng.normal(size=3) + 1).tolist(), rng.normal(size=3).tolist()) for _ in range(13)]
    wide, narrow = (block_interval(blocks, alpha) for alpha in (1e-5, 4e-4))  # less than 1 of 4,000 drawn orders
    assert -math.inf < wide.low < narrow.low < narrow.point < narrow.high < wide.high < math.inf


@pytest.mark.parametrize("blocks", [[], [Block([], [1.0])], [Block([math.nan, 1.0], [1.0, 2.0])]])
def test_nothing_to_compare_is_nan(blocks):
    assert math.isnan(block_interval(blocks, 0.05).low)
    assert math.isnan(block_interval(blocks, 0.05).point)


def test_signed_ranks_of_samples():
    # n = 6: 1 of 64 sign patterns on each side is 3.1 %: smallest and largest value; 2 of 64: the second Walsh average
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert sample_interval(values, 0.05).low == 1.0
    assert sample_interval(values, 0.05).high == 6.0
    assert sample_interval(values, 4 / 64).low == 1.5  # (1 + 2) / 2
    assert sample_interval(values, 1.9 / 64).low == -math.inf
    assert sample_interval(values, 0.05).point == 3.5
    assert math.isnan(sample_interval([], 0.05).point)
    assert math.isnan(sample_interval([1.0, math.nan], 0.05).point)


def test_many_samples_use_the_normal_distribution_and_agree_with_the_exact_one():
    values = np.random.default_rng(0).normal(size=201)
    exact, normal = sample_interval(values[:200].tolist(), 0.05), sample_interval(values.tolist(), 0.05)
    assert normal.high - normal.low == pytest.approx(exact.high - exact.low, rel=0.05)


def test_looks_are_spaced():
    looks, last = [], 0
    for pairs in range(1, 10_000):
        if is_look(pairs, last):
            looks.append((pairs, last))
            last = pairs
    assert [pairs for pairs, _ in looks[:5]] == [FIRST_LOOK, 8, 12, 18, 27]  # each 1.5 times the one before


def test_as_much_of_alpha_is_spent_as_of_the_limit_and_never_more():
    shares = [0.2, 0.7, 0.7, 1.0, 1.3]  # the repeats of the last round may go beyond the limit
    spent, levels = 0.0, []
    for share in shares:
        levels.append(look_level(share, spent, 0.05))
        spent = max(spent, share)
    assert levels == pytest.approx([0.01, 0.025, 0.0, 0.015, 0.0])


@pytest.mark.parametrize(("low", "high", "shows"), [(0.0, math.inf, False), (0.9, math.inf, True), (0.0, 1.1, True)])
def test_a_look_without_a_bound_shows_nothing(low, high, shows):
    assert shows_something(Estimate(point=1.0, low=low, high=high)) is shows


def theorem_2(values, alpha):
    """The paper's recursion, value by value: centre and half width."""
    mean, variance, bets, weighted, costs = 0.5, 0.25, 0.0, 0.0, 0.0
    seen, squares = 0.5, 0.25
    for t, value in enumerate(values, start=1):
        bet = min(math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t))), 0.5)
        costs += 4 * (value - mean) ** 2 * (-math.log(1 - bet) - bet) / 4
        bets, weighted = bets + bet, weighted + bet * value
        seen += value
        mean = seen / (t + 1)
        squares += (value - mean) ** 2
        variance = squares / (t + 1)
    return weighted / bets, (math.log(2 / alpha) + costs) / bets


@pytest.mark.parametrize(("n", "alpha"), [(40, 0.05), (300, 0.01)])
def test_bounded_means_are_those_of_the_theorem(n, alpha):
    values = np.random.default_rng(n).random(n)
    centre, half = theorem_2(values, alpha)
    estimate = bounded_mean_interval((2 * values - 1).tolist(), -1, 1, alpha)
    assert estimate.point == pytest.approx(2 * centre - 1)
    assert estimate.low == pytest.approx(2 * (centre - half) - 1)
    assert estimate.high == pytest.approx(2 * (centre + half) - 1)


def test_bounded_means_hold_the_truth_at_all_numbers_of_values():
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=400)  # mean 0.2
        intervals = [bounded_mean_interval(values[:n], -1, 1, 0.05) for n in range(1, 401, 9)]
        assert all(each.low <= 0.2 <= each.high for each in intervals)
    assert intervals[-1].low > 0
    assert -1 <= intervals[0].low <= intervals[0].high <= 1
    assert math.isnan(bounded_mean_interval([], -1, 1, 0.05).point)
    assert math.isnan(bounded_mean_interval([math.nan], -1, 1, 0.05).point)
