"""Prices: by hand for few requests, and that budgets of many are spent and deadlines kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronostat.evidence.latency import Forecast
from chronostat.policy.frontier import NO_COIN, POINTS, Deadlines, Frontier, Requests, best, can_meet, smallest_price
from chronostat.policy.scorers import QualityScorer
from chronostat.records import Budget
from stand_ins.control_fixtures import forecast_of

LATENCY = np.array([[1.0, 0.4]] * 4)
GAINS = np.array([[0.9, 0.0], [0.6, 0.0], [0.3, 0.0], [0.1, 0.0]])  # of the dear setting over the cheap one


# prices


def test_of_settings_that_score_alike_the_faster_one_is_taken():
    latency = np.array([[0.5, 0.4], [0.3, 0.4]])
    assert best(np.zeros((2, 2)), latency, 0.0, latency).tolist() == [1, 0]
    assert best(np.array([[0.001, 0.0]]), latency[:1], 0.0, latency[:1]).tolist() == [0]
    assert best(np.array([[0.1, 0.0]]), latency[:1], 2.0, latency[:1]).tolist() == [1]  # .1 - 2 * .5 < -2 * .4


def test_the_smallest_price_at_which_a_budget_is_kept():
    # a mean of .7 pays for two dear settings of four; the third gives up where .3 = price * .6
    price, cost, _, _ = smallest_price(GAINS, LATENCY, 0.7, LATENCY, 0.0)
    assert price == pytest.approx(0.5, abs=1e-4)
    assert cost == pytest.approx(0.7)


def test_just_below_the_smallest_price_the_next_request_takes_the_dear_setting():
    found = smallest_price(GAINS, LATENCY, 0.75, LATENCY, 0.0)
    assert found.cost == pytest.approx(0.7)
    assert found.lower_cost == pytest.approx(0.85)
    assert found.lower == pytest.approx(found.price, abs=1e-4)
    assert found.lower < found.price
    assert found.share_of_lower(0.75) == pytest.approx(1 / 3)  # .7 + .15 / 3
    assert smallest_price(GAINS, LATENCY, 1.0, LATENCY, 0.0).share_of_lower(1.0) == 0.0
    assert smallest_price(GAINS, LATENCY, 0.1, LATENCY, 0.0).share_of_lower(0.1) == 0.0  # nothing keeps it


def test_a_budget_that_does_not_bind_has_no_price():
    assert smallest_price(GAINS, LATENCY, 1.0, LATENCY, 0.0) == (0.0, 1.0, 0.0, 1.0)


def test_below_0_what_the_scores_leave_of_a_budget_is_spent():
    scores = -GAINS[::-1]  # the cheap one scores higher by .1, .3, .6, .9
    price, cost, _, _ = smallest_price(scores, LATENCY, 0.7, LATENCY, -100.0)
    assert -0.6 / 0.6 < price < -0.3 / 0.6
    assert cost == pytest.approx(0.7)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 1.2), st.sampled_from([0.0, -100.0]))
def test_a_price_keeps_every_budget_that_can_be_kept_and_none_much_smaller_does(seed, limit, lowest):
    rng = np.random.default_rng(seed)
    scores, latency = rng.random((30, 4)), rng.uniform(0.1, 1, (30, 4))
    price, cost, _, _ = smallest_price(scores, latency, limit, latency, lowest)
    rows = np.arange(30)
    assert cost == latency[rows, best(scores, latency, price, latency)].mean()
    cheapest = latency.min(axis=1).mean()
    assert cost <= max(limit, cheapest) + 1e-9
    if limit > cheapest and price > lowest:
        less = price - 1e-3 * (1 + abs(price)) ** 2
        assert latency[rows, best(scores, latency, less, latency)].mean() > limit or less < lowest


# means


def two_points():
    return Frontier(
        fractions=np.array([0.4, 0.7, 1.0]), prices=np.array([3.0, 0.5, 0.0]), costs=np.array([0.4, 0.7, 1])
    )


def test_a_fraction_lies_between_two_neighbours_with_the_coins_exact_share():
    frontier = two_points()
    assert frontier.at(0.55) == (0, 1, pytest.approx(0.5))
    assert frontier.at(0.76) == (1, 2, pytest.approx(0.2))
    assert frontier.at(0.7) == (0, 1, 1.0)
    assert frontier.at(0.3) == (0, 0, 1.0)
    assert frontier.at(0.4) == (0, 0, 1.0)
    assert frontier.at(1.5) == (2, 2, 1.0)


@settings(max_examples=40)
@given(st.floats(0.4, 1.0))
def test_the_mean_over_all_coins_is_the_fraction(fraction):
    frontier = two_points()
    coins = (np.arange(200) + 0.5) / 200
    spent = np.mean([frontier.costs[frontier.point(fraction, coin)] for coin in coins])
    assert spent == pytest.approx(fraction, abs=0.6 / 200)


def test_at_a_point_the_price_is_that_of_its_budget():
    seen = []

    def scores_at(budget):
        seen.append(budget)
        return GAINS

    frontier = two_points()
    assert frontier.choices(0, scores_at, LATENCY).tolist() == [1, 1, 1, 1]  # 3 * .6 for at most .9
    assert frontier.choices(1, scores_at, LATENCY).tolist() == [0, 0, 1, 1]  # .5 * .6, of .3 as much: the faster one
    assert frontier.choices(2, scores_at, LATENCY).tolist() == [0, 0, 0, 0]
    assert seen == [Budget(kind="mean", fraction=f) for f in (0.4, 0.7, 1.0)]


def many(seed=0, count=400):
    """Requests whose sizes differ by more than ten times, with qualities that rise with what a setting takes."""
    rng = np.random.default_rng(seed)
    latencies = np.array([1.0, 0.75, 0.55, 0.35, 0.2])
    by_setting = np.concatenate([[[0.9, 0.85, 0.75, 0.6, 0.3]], 0.1 * rng.standard_normal((2, 5))])
    prompts = np.concatenate([np.ones((count, 1)), rng.standard_normal((count, 2))], axis=1)
    tokens = np.exp(rng.uniform(1.0, 4.0, (count, 1, 2))).repeat(5, axis=1)
    forecast = forecast_of(latencies, 3, slopes=np.array([[0.9] * 5, *[[0.0] * 5] * 4]), unknown=np.full(5, 0.02))
    scorer = QualityScorer(by_setting=by_setting, order=np.eye(5, dtype=bool))
    return scorer, forecast, Requests(prompts=prompts, tokens=tokens)


LEGAL = np.ones(5, dtype=bool)


@pytest.mark.parametrize("legal", [LEGAL, np.array([True, False, True, True, False])])
def test_mean_budgets_are_spent(legal):
    scorer, forecast, requests = many()
    frontier = Frontier.of(scorer, forecast, requests, legal)
    latency = forecast.mean(requests.prompts, requests.tokens)
    assert latency[:, 0].max() > 10 * latency[:, 0].min()
    scores = np.where(legal, scorer.scores(requests.prompts, Budget(kind="mean", fraction=1.0)), -np.inf)
    chosen = np.stack([frontier.choices(point, lambda budget: scores, latency) for point in range(POINTS)])
    assert legal[chosen].all()
    costs = latency[np.arange(len(latency)), chosen].mean(axis=1)
    assert costs == pytest.approx(frontier.costs)
    assert (np.diff(frontier.costs) >= 0).all()
    assert (np.diff(frontier.prices) <= 0).all()
    coins = np.random.default_rng(1).permutation((np.arange(len(latency)) + 0.5) / len(latency))
    for fraction in np.linspace(frontier.costs[0], frontier.costs[-1], 9):
        points = [frontier.point(fraction, coin) for coin in coins]
        spent = latency[np.arange(len(latency)), chosen[points, np.arange(len(latency))]].mean()
        assert spent == pytest.approx(fraction, rel=0.03)


def test_the_cheapest_point_is_the_fastest_setting_of_each_request():
    scorer, forecast, requests = many()
    frontier = Frontier.of(scorer, forecast, requests, LEGAL)
    assert frontier.costs[0] == pytest.approx(forecast.mean(requests.prompts, requests.tokens).min(axis=1).mean())


# deadlines


def late_of(deadlines, fraction, scorer, forecast, requests, coin=NO_COIN):
    """Probability to be late of what is chosen, of the requests that can be in time."""
    late = forecast.late(requests.prompts, requests.tokens, fraction)
    scores = scorer.scores(requests.prompts, Budget(kind="deadline", fraction=fraction))
    latency = forecast.mean(requests.prompts, requests.tokens)
    chosen = deadlines.choices(fraction, scores, late, latency, coin)
    return late[np.arange(len(late)), chosen][can_meet(late)], chosen


def test_as_many_requests_are_late_as_may_be_no_more():
    scorer, forecast, requests = many()
    deadlines = Deadlines.of(scorer, forecast, requests, LEGAL)
    shares = [late_of(deadlines, f, scorer, forecast, requests)[0].mean() for f in deadlines.fractions.tolist()]
    priced = deadlines.prices > 0
    assert priced.sum() > 10
    assert np.max(shares) <= forecast.allowed + 1e-9
    # one request more costs at most 1 / 400
    assert np.min(np.array(shares)[priced][1:]) > forecast.allowed - 0.01
    assert not priced[-1]  # twice what the slowest request takes under full


def test_a_coin_lets_exactly_as_many_requests_be_late_as_may_be():
    """Requests of one kind, so that all of them would change their setting at the same price."""
    scorer, forecast, requests = many()
    alike = Requests(prompts=requests.prompts[:1].repeat(50, axis=0), tokens=requests.tokens[:1].repeat(50, axis=0))
    deadlines = Deadlines.of(scorer, forecast, alike, LEGAL)
    tossed = np.flatnonzero(deadlines.shares)
    assert len(tossed) > 10
    for i in tossed:
        fraction, share = float(deadlines.fractions[i]), float(deadlines.shares[i])
        assert deadlines.share(fraction) == share
        tails = late_of(deadlines, fraction, scorer, forecast, alike)[0].mean()
        heads = late_of(deadlines, fraction, scorer, forecast, alike, coin=0.999 * share)[0].mean()
        assert tails < forecast.allowed < heads
        assert share * heads + (1 - share) * tails == pytest.approx(forecast.allowed)
        assert late_of(deadlines, fraction, scorer, forecast, alike, coin=1.001 * share)[0].mean() == tails


def test_prices_of_before_there_was_a_coin_are_paid_by_all():
    old = {"fractions": np.array([0.4, 0.5]), "prices": np.array([2.0, 0.5])}
    deadlines = Deadlines.restored(old)
    assert deadlines.shares.tolist() == [0.0, 0.0]
    assert deadlines.lower.tolist() == deadlines.prices.tolist()


def test_a_request_whose_answer_is_worth_it_is_late_more_often():
    scorer, forecast, requests = many()
    deadlines = Deadlines.of(scorer, forecast, requests, LEGAL)
    late, _ = late_of(deadlines, float(deadlines.fractions[12]), scorer, forecast, requests)
    assert late.max() > 2 * forecast.allowed
    assert np.median(late) < forecast.allowed


def test_between_two_deadlines_the_dearer_price_counts():
    deadlines = Deadlines(
        fractions=np.array([0.4, 0.5, 0.6]),
        prices=np.array([2.0, 3.0, 0.5]),
        lower=np.array([1.9, 2.9, 0.4]),
        shares=np.array([0.2, 0.3, 0.1]),
    )
    assert [deadlines.share(at) for at in (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.9)] == [0.2, 0.2, 0.3, 0.3, 0.3, 0.1, 0.1]
    scores, late = np.array([[0.0, -2.95]]), np.array([[1.0, 0.0]])  # worth being late for at the lower price of .5
    assert deadlines.choices(0.45, scores, late, late, 0.3).tolist() == [1]
    assert deadlines.choices(0.45, scores, late, late, 0.29).tolist() == [0]


def test_the_tightest_deadline_is_the_one_that_half_of_the_requests_can_meet():
    scorer, _, requests = many()
    forecast = forecast_of([1.0, 0.5, 0.4, 0.3, 0.2], 3)  # whatever the size
    # half of the residuals lie beyond 0
    tightest = Deadlines.of(scorer, forecast, requests, LEGAL).fractions[0]
    assert tightest == pytest.approx(0.2, rel=5e-3)
    without = Deadlines.of(scorer, forecast, requests, np.array([True, True, True, True, False])).fractions[0]
    assert without == pytest.approx(0.3, rel=5e-3)


def test_half_of_requests_of_two_sizes():
    scorer, _, _ = many()
    small, large = np.full((5, 2), 10.0), np.full((5, 2), 100.0)
    requests = Requests(prompts=np.ones((10, 3)), tokens=np.stack([small] * 6 + [large] * 4))
    forecast = forecast_of([1.0, 0.5, 0.4, 0.3, 0.2], 3, slopes=np.array([[1.0] * 5, *[[0.0] * 5] * 4]))
    assert Deadlines.of(scorer, forecast, requests, LEGAL).fractions[0] == pytest.approx(0.2, rel=5e-3)


def test_requests_that_are_late_whatever_is_chosen_say_nothing_unless_there_is_no_other():
    late = np.array([[0.0, 0.9], [0.5, 1.0], [0.49, 0.49]])
    assert can_meet(late).tolist() == [True, False, True]
    assert can_meet(late[1:2]).tolist() == [True]


def test_where_nothing_is_sure_enough_the_likeliest_is_priced():
    scorer, _, requests = many()
    forecast = forecast_of([1.0, 0.5, 0.4, 0.3, 0.2], 3, unknown=np.full(5, 0.2), allowed=0.0)
    deadlines = Deadlines.of(scorer, forecast, requests, LEGAL)
    assert np.isfinite(deadlines.prices).all()
    _, chosen = late_of(deadlines, float(deadlines.fractions[0]), scorer, forecast, requests)
    assert set(chosen.tolist()) == {4}


def test_what_is_stored_prices_the_same():
    scorer, forecast, requests = many(count=60)
    for made in (Frontier.of(scorer, forecast, requests, LEGAL), Deadlines.of(scorer, forecast, requests, LEGAL)):
        other = type(made).restored(made.state())
        assert all(np.array_equal(value, getattr(other, name)) for name, value in made.state().items())
    assert isinstance(forecast, Forecast)


@pytest.mark.parametrize("requests", [1, 3])
def test_a_request_that_no_legal_setting_brings_in_time_gets_the_fastest_one(requests):
    deadlines = Deadlines.restored({"fractions": np.array([0.5]), "prices": np.array([0.0])})
    scores = np.array([[0.9, 0.2, -np.inf]] * requests)  # the third may not be chosen
    late, latency = np.array([[0.9, 0.6, 0.1]] * requests), np.array([[1.0, 0.5, 0.2]] * requests)
    assert deadlines.choices(0.4, scores, late, latency, NO_COIN).tolist() == [1] * requests
    late[0, 1] = 0.4  # now one can be in time, and no price speaks against the dearer one
    assert deadlines.choices(0.4, scores, late, latency, NO_COIN).tolist() == [0, *[1] * (requests - 1)]
