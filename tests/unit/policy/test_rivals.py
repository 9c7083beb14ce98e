"""What needs no looking at requests, by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronostat.policy.rivals import Mix, rivals_of
from chronostat.records import Budget
from stand_ins.control_fixtures import forecast_of
from stand_ins.made_up_policy import made_up

LATENCY = np.array([1.0, 0.6, 0.5, 0.2])
QUALITY = np.array([0.9, 0.6, 0.7, 0.2])


def rivals(fraction, kind="mean", **changes):
    return rivals_of(made_up(QUALITY, LATENCY, priced=False, **changes), Budget(kind=kind, fraction=fraction))


def test_the_best_fixed_setting_within_a_mean():
    found = rivals(0.65)
    assert (found.fixed, found.accuracy, found.shortfall) == (2, pytest.approx(0.7), pytest.approx(0.0))
    assert rivals(0.5).fixed == 2
    assert rivals(0.49).fixed == 3
    assert rivals(1.0).fixed == 0


def test_the_best_mix_passes_over_what_is_worse_than_a_mix():
    # from .5 to 1 at .65: 30 %; .7 * .7 + .3 * .9
    assert rivals(0.65).mix == Mix(2, 0, pytest.approx(0.3))
    # from .2 to .5 at .35: half
    assert rivals(0.35).mix == Mix(3, 2, pytest.approx(0.5))
    assert rivals(0.2 + 1e-9).mix == Mix(3, 2, pytest.approx(0.0, abs=1e-6))
    assert rivals(1.0).mix == Mix(0, 0, 0.0)


def test_a_fixed_setting_pays_for_no_controller_and_leaves_no_margin():
    forecast = forecast_of(LATENCY, controller=0.1)
    assert rivals(0.5, forecast=forecast, margin=0.03).fixed == 2


def test_under_a_deadline_at_most_5_percent_of_what_can_be_in_time_are_late():
    # 5 of 100 residuals lie beyond 1.78 spreads of .1: .5 * exp(.178) = .5974
    found = rivals(0.6, "deadline")
    assert (found.fixed, found.mix) == (2, None)
    assert rivals(0.59, "deadline").fixed == 3
    assert rivals(0.59, "deadline", forecast=forecast_of(LATENCY, unknown=np.array([0, 0, 0, 1.0]))).fixed == 3


@pytest.mark.parametrize("kind", ["mean", "deadline"])
def test_where_nothing_keeps_a_budget_it_is_the_fastest(kind):
    found = rivals(0.1, kind)
    assert (found.fixed, found.accuracy, found.shortfall, found.mix) == (3, pytest.approx(0.2), 0.0, None)
    assert rivals(0.01, kind, legal=[True, True, True, False]).fixed == 2


def test_what_was_taken_out_is_no_rival():
    found = rivals(0.65, legal=[True, True, False, True])
    assert found.fixed == 1
    # .6 to 1 at .65 is .6375; .2 to 1 is .56: .44 * .2 + .56 * .9 = .594
    assert found.mix == Mix(1, 0, pytest.approx(0.125))


def test_the_shortfall_is_what_the_truly_best_may_be_worth_beyond():
    draws = np.stack([QUALITY[None], np.array([[0.9, 0.8, 0.7, 0.2]]), np.array([[0.95, 0.5, 0.7, 0.2]])])
    # under .65 the best of the draws are .7, .8 and .7
    assert rivals(0.65, draws=draws).shortfall == pytest.approx((0 + 0.1 + 0) / 3)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_no_other_two_settings_make_a_better_mix(seed, place):
    rng = np.random.default_rng(seed)
    quality, latency = rng.random(5), rng.uniform(0.1, 1.0, 5)
    limit = float(latency.min() + place * (latency.max() - latency.min()))
    mix = rivals_of(made_up(quality, latency, priced=False), Budget(kind="mean", fraction=limit + 1e-9)).mix
    assert mix is not None

    def worth(low, high, share):
        return (1 - share) * quality[low] + share * quality[high]

    found = worth(mix.low, mix.high, mix.share)
    for low, high in product(range(5), range(5)):
        if latency[low] <= limit < latency[high]:
            assert worth(low, high, (limit - latency[low]) / (latency[high] - latency[low])) <= found + 1e-6
        if latency[low] <= limit:
            assert quality[low] <= found + 1e-9


def test_under_a_deadline_a_fixed_setting_pays_for_no_controller_and_is_held_to_what_is_likeliest():
    unsure = np.array([0, 0, 0.3, 0])
    forecast = forecast_of(LATENCY, controller=0.1, unknown=unsure)
    assert rivals(0.6, "deadline", forecast=forecast).fixed == 2  # .5974 as without a controller and without doubt
    assert rivals(0.59, "deadline", forecast=forecast).fixed == 3
