"""What has changed since a forecast was made, from measurements without noise or with a known one."""

from dataclasses import replace
from math import log, pi

import numpy as np
import pytest

from chronostat.evidence.change import Timed, change_of
from chronostat.evidence.latency import Forecast, allowed_beyond
from chronostat.evidence.linear import BayesianLinear
from chronostat.knobs.space import ActionSpace

SPACE = ActionSpace({"vision_tokens": (8, 4, 2), "block_skip": ((), (1,), (1, 2))})
COUNT = len(SPACE)
TOKENS = np.array([[s["vision_tokens"], 10.0] for s in SPACE.settings])  # [S, 2]
BASE = np.log(np.linspace(1.0, 0.3, COUNT))
PROMPTS, SIZES = np.ones((4, 1)), np.tile(TOKENS, (4, 1, 1))


def forecast(spread=0.1, unknown=0.02):
    known = np.full(COUNT, unknown)
    known[0] = 0.0
    return Forecast(
        image_tokens=TOKENS[:, 0],
        text_tokens=10.0,
        base=BASE,
        slopes=np.zeros((5, COUNT)),
        prompt=np.zeros(1),
        smear=1.0,
        spread=np.full(COUNT, spread),
        unknown=known,
        residuals=np.linspace(-2, 2, 401),
        allowed=0.04,
        controller=0.01,
    )


def timed(factors, requests, *, left_out=(), noise=0.0, seed=0, grown=1.0):
    """Requests under every setting, each times a factor [S]; ``grown``: every second one has so many more tokens."""
    rng, settings = np.random.default_rng(seed), np.array([i for i in range(COUNT) if i not in left_out])
    sizes = [TOKENS * [grown if i % 2 else 1.0, 1.0] for i in range(requests)]
    return [
        Timed(
            prompt=np.ones(1),
            tokens=tokens,
            settings=settings,
            fractions=np.exp(BASE + np.log(factors) + rng.normal(0, noise, COUNT))[settings],
            cold=np.zeros(len(settings), dtype=np.bool_),
        )
        for tokens in sizes
    ]


def changed(measured, before=None):
    return change_of(SPACE, before or forecast(), measured, PROMPTS, SIZES)


def test_evidence_by_hand():
    """y = w + noise, both of variance 1: y is normal with variance 2, and p(2) = exp(-4 / 4) / sqrt(4 pi)."""
    line = BayesianLinear(np.array([0]), [1.0], noise=1.0, least_noise=1e-6)
    line.add(np.ones((1, 1)), np.array([2.0]))
    line.update()
    assert line.log_evidence == pytest.approx(-1 - log(4 * pi) / 2)


def test_evidence_of_two_measurements_by_hand():
    """Covariance [[2, 1], [1, 2]] of determinant 3; for y = (1, -1) y' C^-1 y = 2."""
    line = BayesianLinear(np.array([0]), [1.0], noise=1.0, least_noise=1e-6)
    line.add(np.ones((2, 1)), np.array([1.0, -1.0]))
    line.update()
    assert line.log_evidence == pytest.approx(-(2 * log(2 * pi) + log(3) + 2) / 2)


def test_a_machine_that_is_slower_alike_moves_full_alone():
    change = changed(timed(np.full(COUNT, 1.5), 6))
    assert change.full == pytest.approx(1.5, rel=0.01)
    assert change.moved == pytest.approx(0.0, abs=0.005)
    assert change.forecast.base == pytest.approx(BASE, abs=0.005)


def test_a_setting_that_was_not_executed_moves_as_its_neighbours_do():
    factors = np.array([1.0 if s["vision_tokens"] == 8 else 2.0 for s in SPACE.settings])
    unseen = COUNT - 1
    change = changed(timed(factors, 6, left_out=[unseen], noise=0.01))
    assert change.full == pytest.approx(1.0, rel=0.05)
    assert change.moved[1:] == pytest.approx(np.log(factors)[1:], abs=0.1)
    assert change.deviation[unseen] > 1.5 * change.deviation[unseen - 1]
    interval = change.moved[unseen] + 1.96 * change.deviation[unseen] * np.array([-1, 1])
    assert interval[0] < log(2) < interval[1]


def test_where_nothing_moved_noise_moves_nothing():
    moved, beyond = [], 0
    for seed in range(10):
        change = changed(timed(np.ones(COUNT), 6, noise=0.1, seed=seed))
        moved.append(change.moved)
        beyond += int((np.abs(change.moved) > 1.96 * change.deviation).sum())
    # nine settings measured six times each would be off by .1 * sqrt(1 / 6 + 1 / 6) = .058 without what was known
    assert np.sqrt(np.mean(np.square(moved))) < 0.03
    assert beyond <= 4  # of 80


def test_doubt_shrinks_with_measurements_and_does_not_grow_with_renewals():
    before = forecast(unknown=0.1)
    for seed in range(5):
        before = changed(timed(np.ones(COUNT), 6, noise=0.1, seed=seed), before).forecast
    assert before.unknown.max() < 0.06


def test_latency_that_grows_with_tokens_is_seen_in_larger_requests():
    """Twice the tokens take 1.5 times as long now, where they took as long before."""
    measured = timed(np.ones(COUNT), 12, noise=0.02, grown=2.0)
    longer = [replace(each, fractions=each.fractions * 1.5) if i % 2 else each for i, each in enumerate(measured)]
    change = changed(longer)
    larger = change.forecast.mean(PROMPTS, np.tile(TOKENS * [2.0, 1.0], (4, 1, 1)))
    usual = change.forecast.mean(PROMPTS, SIZES)
    assert (larger / usual).mean() == pytest.approx(1.5, abs=0.15)


def test_noise_that_doubled_widens_the_spread_and_keeps_its_shape():
    change = changed(timed(np.ones(COUNT), 6, noise=0.2))
    # 54 residuals of deviation 2 in units of before and 20 of 1: sqrt((20 + 54 * 4) / 74) = 1.79
    assert change.forecast.spread.mean() == pytest.approx(0.179, abs=0.03)
    assert change.forecast.residuals.tolist() == forecast().residuals.tolist()
    assert change.forecast.allowed == 0.04


def test_many_measurements_say_by_themselves_how_noise_is_distributed():
    change = changed(timed(np.ones(COUNT), 60, noise=0.2))
    assert len(change.forecast.residuals) == 60 * COUNT
    assert change.forecast.allowed == allowed_beyond(60 * COUNT)
    assert np.std(change.forecast.residuals) == pytest.approx(1.0, abs=0.1)


def test_what_cold_caches_take_is_no_change():
    """The first execution of each request takes 1.3 times as long: another setting on each of nine requests."""
    measured = []
    for i, each in enumerate(timed(np.ones(COUNT), COUNT, noise=0.01)):
        cold = np.arange(COUNT) == i
        measured.append(replace(each, cold=cold, fractions=each.fractions * np.where(cold, 1.3, 1.0)))
    change = changed(measured)
    assert change.full == pytest.approx(1.0, abs=0.01)
    assert change.moved == pytest.approx(0.0, abs=0.01)


def test_skewed_noise_moves_full_by_its_median():
    """Noise that is exponential with mean .2 in the logarithm: its median is .2 log 2, its mean is not."""
    rng = np.random.default_rng(0)
    measured = [
        replace(each, fractions=each.fractions * np.exp(0.2 * rng.exponential(size=COUNT)))
        for each in timed(np.ones(COUNT), 60)
    ]
    assert np.log(changed(measured).full) == pytest.approx(0.2 * np.log(2), abs=0.02)
