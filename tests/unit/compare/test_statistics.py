"""Intervals and tests, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from chronostat.compare.statistics import (
    PERMUTATIONS,
    PairedBootstrap,
    dependence_p_value,
    median_interval,
    weighted_quantile,
)


def quantile(values, weights, q):
    return weighted_quantile(np.array(values, dtype=float), np.array(weights, dtype=float), q)


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        (0.25, 1),  # 1 of 4 lie at or below 1
        (0.26, 2),  # 1 of 4 is less than .26, 2 of 4 are enough
        (0.5, 2),
        (0.75, 3),
        (0.95, 4),
        (1.0, 4),
    ],
)
def test_quantile_of_equal_weights(q, expected):
    assert quantile([4, 1, 3, 2], [1, 1, 1, 1], q) == expected


def test_quantile_of_unequal_weights():
    # at or below 10: 1 of 10 parts; 20: 1 + 2 = 3; 30: 3 + 7 = 10
    values, weights = [30, 10, 20], [7, 1, 2]
    assert [quantile(values, weights, q) for q in (0.1, 0.11, 0.3, 0.31)] == [10, 20, 20, 30]


def test_quantile_does_not_miss_its_share_by_the_last_bit():
    # 0.1 added up three times is 0.30000000000000004, six times 0.6, and ten times 0.9999999999999999
    assert [quantile(range(10), [0.1] * 10, k / 10) for k in range(1, 11)] == list(range(10))


def test_quantile_of_a_mix_does_not_miss_its_share_by_the_last_bit():
    # 1, 1.5, 2, 2.5 ... of weight 0.7 and 0.3 in turn: at or below 12.0 lie 11 + 0.7, which is 0.9 of 13
    assert quantile(np.arange(2, 28) / 2, [0.7, 0.3] * 13, 0.9) == 12.0


def test_quantile_passes_over_values_without_weight():
    assert quantile([1, 5], [0, 1], 0.01) == 5


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [
        (6, 1, 6),  # 2 * C(6,0) / 2^6 = .031 <= .05; with C(6,1) it would be .219
        (8, 1, 8),  # 2 * (1 + 8) / 256 = .070 is too much for the second
        (9, 2, 8),  # 2 * (1 + 9) / 512 = .039
        (10, 2, 9),  # 2 * (1 + 10) / 1024 = .021; with C(10,2) = 45 it would be .109
        (20, 6, 15),  # 2 * (1 + 20 + 190 + 1140 + 4845 + 15504) / 2^20 = .041
    ],
)
def test_median_interval_takes_these_ranks(n, low, high):
    shuffled = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    assert median_interval(shuffled.tolist()).point == (n + 1) / 2
    assert (median_interval(shuffled.tolist()).low, median_interval(shuffled.tolist()).high) == (low, high)


@pytest.mark.parametrize("n", range(1, 6))
def test_five_values_or_fewer_bound_no_median(n):
    estimate = median_interval(list(range(n)))  # 2 / 2^5 = .0625 > .05
    assert estimate.point == (n - 1) / 2
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_bootstrap_of_a_constant_has_no_width():
    estimate = PairedBootstrap(20, seed=0).mean(np.full(20, 0.7))
    assert (estimate.point, estimate.low, estimate.high) == pytest.approx((0.7, 0.7, 0.7))


@pytest.mark.parametrize(
    ("n", "unseen"),
    [
        (2, 0.8419),  # 1 - .025 ** (1 / 2) = 1 - .1581
        (20, 0.1684),  # 1 - .025 ** (1 / 20) = 1 - .8316
        (300, 0.0122),  # 1 - .025 ** (1 / 300) = 1 - .9878
    ],
)
def test_samples_that_are_all_alike_leave_room_for_what_they_did_not_show(n, unseen):
    bootstrap = PairedBootstrap(n, seed=0)
    gain = bootstrap.bounded(np.zeros(n), -1.0, 1.0)
    assert (gain.point, gain.low, gain.high) == pytest.approx((0, -unseen, unseen), abs=1e-4)
    accuracy = bootstrap.bounded(np.ones(n), 0.0, 1.0)
    assert (accuracy.point, accuracy.low, accuracy.high) == pytest.approx((1, 1 - unseen, 1), abs=1e-4)


def test_only_samples_that_count_leave_room():
    where = np.arange(40) < 20
    estimate = PairedBootstrap(40, seed=0).bounded(np.where(where, 1.0, 0.0), 0.0, 1.0, where)
    assert (estimate.point, estimate.low, estimate.high) == pytest.approx((1, 0.8316, 1), abs=1e-4)


@pytest.mark.parametrize("how", ["mean", "bounded"])
def test_one_sample_that_counts_bounds_nothing_and_none_has_no_mean(how):
    bootstrap, values = PairedBootstrap(2, seed=0), np.array([0.25, 0.75])

    def estimate(*where):
        bounds = () if how == "mean" else (0.0, 1.0)
        return getattr(bootstrap, how)(values, *bounds, np.array(where))

    one, none = estimate(True, False), estimate(False, False)
    assert one.point == 0.25
    assert all(map(math.isnan, (one.low, one.high, none.point, none.low, none.high)))


def test_samples_that_differ_are_bounded_by_the_bootstrap():
    values, bootstrap = np.repeat([1.0, 0.0], [1, 19]), PairedBootstrap(20, seed=0)
    assert bootstrap.bounded(values, 0.0, 1.0) == bootstrap.mean(values)


def test_bootstrap_of_one_sample_has_no_bounds():
    estimate = PairedBootstrap(1, seed=0).mean(np.array([0.7]))
    assert estimate.point == 0.7
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_a_difference_is_resampled_in_pairs():
    rng = np.random.default_rng(0)
    one = rng.normal(size=50)
    other = one + 0.25
    bootstrap = PairedBootstrap(50, seed=0)
    alone, difference = bootstrap.mean(one), bootstrap.mean(other - one)
    assert alone.high - alone.low > 0.3  # about 2 * 1.96 / sqrt(50) = .55
    assert (difference.low, difference.high) == pytest.approx((0.25, 0.25))
    # the same draws for both: what moves one moves the other
    assert bootstrap.mean(other).low - alone.low == pytest.approx(0.25)


def test_bootstrap_of_zeros_and_ones():
    # 30 of 100: standard error sqrt(.3 * .7 / 100) = .0458, so about .3 -+ .09, on the grid of 1 / 100
    estimate = PairedBootstrap(100, seed=0).mean(np.repeat([1.0, 0.0], [30, 70]))
    assert estimate.point == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((0.21, 0.39), abs=0.011)


def test_bootstrap_follows_from_its_seed():
    values = np.random.default_rng(3).normal(size=30)
    assert PairedBootstrap(30, seed=1).mean(values) == PairedBootstrap(30, seed=1).mean(values)
    assert PairedBootstrap(30, seed=1).mean(values) != PairedBootstrap(30, seed=2).mean(values)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng, bootstrap = np.random.default_rng(7), PairedBootstrap(60, seed=0)
    estimates = [bootstrap.mean((rng.random(60) < 0.7).astype(float)) for _ in range(400)]
    covered = np.mean([estimate.low <= 0.7 <= estimate.high for estimate in estimates])
    assert 0.90 <= covered <= 0.98  # percentile intervals of 60 zeros and ones: a little below 95 %


def test_dependence_is_found_and_its_p_value_is_never_0():
    kinds = ["sum"] * 20 + ["colour"] * 20
    p_value = dependence_p_value(kinds, [3] * 20 + [5] * 20, seed=0)
    assert p_value == 1 / (1 + PERMUTATIONS)  # no permutation is as extreme


def test_chance_alone_is_no_dependence():
    rng = np.random.default_rng(0)
    kinds = rng.choice(["a", "b", "c"], size=120).tolist()
    p_values = [dependence_p_value(kinds, rng.integers(4, size=120).tolist(), seed=0) for _ in range(8)]
    assert min(p_values) > 0.01
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.25)


def test_one_choice_for_all_is_no_dependence():
    assert dependence_p_value(["a", "a", "b"], [2, 2, 2], seed=0) == 1
    assert dependence_p_value(["a", "a", "a"], [2, 1, 2], seed=0) == 1


def test_a_permutation_p_value_that_can_be_counted():
    # of the C(4,2) = 6 ways to give two of four choices to "a", 2 separate the choices as well as this one
    p_value = dependence_p_value(["a", "a", "b", "b"], [1, 1, 2, 2], seed=0)
    assert p_value == pytest.approx(1 / 3, abs=0.04)


def test_resamples_that_draw_nothing_of_what_counts_have_no_say():
    # one resample in 27 of three samples holds the first one only, which does not count
    mean = PairedBootstrap(3, seed=0).mean(np.array([7.0, 20.0, 30.0]), np.array([False, True, True]))
    assert (mean.point, mean.low, mean.high) == pytest.approx((25, 20, 30))
