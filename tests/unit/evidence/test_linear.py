"""Bayesian regression: posteriors by hand, and strengths that the evidence knows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from chronostat.evidence.linear import BayesianLinear


def regression(groups, variances, noise=1.0, least_noise=1e-6):
    return BayesianLinear(np.array(groups), variances, noise, least_noise)


def made_up(rng, count, weights, noise):
    x = np.concatenate([np.ones((count, 1)), rng.standard_normal((count, len(weights) - 1))], axis=1)
    return x, x @ weights + np.sqrt(noise) * rng.standard_normal(count)


def test_a_posterior_by_hand():
    model = regression([0], [4.0])
    model.add(np.array([[1.0], [2.0]]), np.array([3.0, 5.0]))
    assert model.mean.tolist() == [0.0]  # nothing counts before it is told to
    model.update()
    # precision (1 + 4) / 1 + 1 / 4 = 5.25; moment 1 * 3 + 2 * 5 = 13
    assert model.mean.tolist() == pytest.approx([13 / 5.25])
    assert model.variance(np.array([[1.0], [3.0]])).tolist() == pytest.approx([1 / 5.25, 9 / 5.25])
    assert model.count == 2


def test_what_is_taken_in_place_of_measurements_is_all_that_is_known():
    model, other = regression([0], [4.0]), regression([0], [4.0])
    for each in (model, other):
        each.add(np.array([[1.0], [2.0]]), np.array([3.0, 5.0]))
    model.retake(np.array([[1.0], [2.0]]), np.array([3.0, 4.0]))
    other.retake(np.array([[2.0]]), np.array([1.0]))
    model.update()
    other.update()
    assert model.mean.tolist() == pytest.approx([11 / 5.25])
    assert other.mean.tolist() == pytest.approx([2 / 4.25])
    assert (model.count, other.count) == (2, 1)


def test_groups_have_variances_of_their_own():
    model = regression([0, 1], [1.0, 0.5], noise=0.5)
    model.add(np.eye(2), np.array([1.0, 1.0]))
    model.update()
    # 1 / .5 / (1 / .5 + 1 / 1) and 1 / .5 / (1 / .5 + 1 / .5)
    assert model.mean.tolist() == pytest.approx([2 / 3, 1 / 2])


def test_before_anything_is_measured_the_prior_holds():
    model = regression([0, 1], [4.0, 0.25])
    model.fit()
    assert model.mean.tolist() == [0.0, 0.0]
    assert model.variance(np.array([[1.0, 2.0]])).tolist() == pytest.approx([4 + 4 * 0.25])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 5))
def test_the_mean_is_that_of_regularised_least_squares(seed, count, size):
    rng = np.random.default_rng(seed)
    x, y, noise = rng.standard_normal((count, size)), rng.standard_normal(count), 0.3
    variances = rng.uniform(0.1, 2, size)
    model = regression(np.arange(size), variances, noise)
    for row, value in zip(x, y, strict=True):
        model.add(row[None], value[None])
    model.update()
    stacked = np.concatenate([x / np.sqrt(noise), np.diag(variances**-0.5)])
    expected = np.linalg.lstsq(stacked, np.concatenate([y / np.sqrt(noise), np.zeros(size)]), rcond=None)[0]
    assert model.mean == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_strength_of_a_group_is_found_and_a_useless_one_fades(seed):
    rng = np.random.default_rng(seed)
    weights = np.concatenate([[0.4], 0.5 * rng.standard_normal(30), np.zeros(30)])
    x, y = made_up(rng, 600, weights, noise=0.09)
    model = regression(np.repeat([0, 1, 2], [1, 30, 30]), [1.0, 1.0, 1.0])
    model.add(x, y)
    model.update()
    before = np.abs(model.mean[31:]).max()  # offered alike, what says nothing takes part in the noise
    model.fit()
    assert model.noise == pytest.approx(0.09, rel=0.15)
    assert model._variances[1] == pytest.approx((weights[1:31] ** 2).mean(), rel=0.1)
    assert model.mean[:31] == pytest.approx(weights[:31], abs=0.05)
    after = np.abs(model.mean[31:]).max()
    assert after < 0.15 * before
    assert seed % 2 == 0 or after < 1e-5  # where by chance it explains less than nothing would, it is 0


def test_strengths_maximise_the_evidence():
    rng = np.random.default_rng(1)
    x, y = made_up(rng, 80, np.array([0.3, 0.8, -0.5, 0.6, 0.1, -0.05, 0.1]), noise=0.2)
    groups = np.array([0, 1, 1, 1, 2, 2, 2])
    model = regression(groups, [1.0, 1.0, 1.0])
    model.add(x, y)
    for _ in range(20):
        model.fit()

    def evidence(variances, noise):
        covariance = noise * np.eye(len(y)) + (x * variances[groups]) @ x.T
        return multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)

    best = evidence(model._variances, model.noise)
    for factor in (0.8, 1.25):
        assert evidence(model._variances, model.noise * factor) < best
        for group in (1, 2):
            other = model._variances.copy()
            other[group] *= factor
            assert evidence(other, model.noise) < best


def test_the_first_group_keeps_its_variance_and_the_noise_its_least():
    model = regression([0, 1], [3.0, 1.0], least_noise=0.05)
    x = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    model.add(x, x @ np.array([1.0, 2.0]))  # without any noise
    model.fit()
    assert model._variances[0] == 3.0
    assert model.noise == 0.05


def test_the_same_in_the_same_order_is_the_same_bit_for_bit():
    models = [regression([0, 1, 1], [1.0, 1.0]) for _ in range(2)]
    for model in models:
        rng = np.random.default_rng(2)
        for i in range(12):
            model.add(*made_up(rng, 3, np.array([0.1, 0.5, 0.0]), noise=0.1))
            if i % 4 == 0:
                model.fit()
    first, second = models
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.draw(np.random.default_rng(0), 3), second.draw(np.random.default_rng(0), 3))


def test_without_some_measurements_is_as_if_they_had_never_been():
    rng = np.random.default_rng(3)
    some, others = (made_up(rng, 10, np.array([0.1, 0.5, 0.2]), noise=0.1) for _ in range(2))
    whole, part = (regression([0, 1, 1], [1.0, 0.3], noise=0.1) for _ in range(2))
    whole.add(*some)
    whole.add(*others)
    part.add(*others)
    whole.update()
    part.update()
    without = whole.without(*some)
    assert without.mean == pytest.approx(part.mean)
    assert without.variance(np.eye(3)) == pytest.approx(part.variance(np.eye(3)))
    assert (without.count, whole.count) == (10, 20)


def test_draws_scatter_as_much_as_is_not_known():
    model = regression([0, 1, 1], [1.0, 0.5], noise=0.2)
    model.add(*made_up(np.random.default_rng(4), 5, np.array([0.1, 0.5, 0.2]), noise=0.2))
    model.update()
    draws = model.draw(np.random.default_rng(0), 20_000)
    directions = np.array([[1.0, 0.0, 0.0], [1.0, 2.0, -1.0]])
    assert draws.mean(axis=0) == pytest.approx(model.mean, abs=0.02)
    assert (draws @ directions.T).var(axis=0) == pytest.approx(model.variance(directions), rel=0.05)
