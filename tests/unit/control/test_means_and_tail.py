"""What holds choices to budgets."""

import pytest
import torch

from chronostat.control.learners.means_and_tail import LatencyMeans, Limits, TooTightError
from chronostat.errors import BudgetError
from chronostat.records import Budget

MEAN, DEADLINE = Budget(kind="mean", fraction=0.5), Budget(kind="deadline", fraction=0.5)


def test_the_calibration_counts_for_16_measurements():
    means = LatencyMeans([1.0, 0.5])
    means.add(torch.tensor([1, 1]), torch.tensor([0.67, 0.67]))  # equal draws share one measurement
    assert means.means.tolist() == pytest.approx([1.0, 0.5 + (0.67 - 0.5) / 17])


def test_the_tail_is_the_95_percent_quantile_of_latency_over_its_settings_mean():
    means = LatencyMeans([1.0])
    assert means.tail == 1.0
    for value in torch.linspace(0.9, 1.1, 201):
        means.add(torch.tensor([0]), value.reshape(1))
    assert means.tail == pytest.approx(1.09, abs=0.03)


def test_scores_decide_where_the_budget_leaves_room():
    limits = Limits([1.0, 0.4, 0.2], [MEAN])
    assert limits.choose(torch.tensor([0.3, 0.9, 0.1]), MEAN) == 1


def test_a_deadline_takes_out_settings_whose_slow_requests_would_miss_it():
    limits = Limits([1.0, 0.48, 0.2], [])
    scores = torch.tensor([0.9, 0.8, 0.1])
    assert limits.choose(scores, DEADLINE) == 1
    limits.latencies.tail = 1.1  # .48 * 1.1 = .528
    assert limits.choose(scores, DEADLINE) == 2


def test_a_mean_budget_has_a_price_and_a_deadline_has_none():
    limits = Limits([1.0, 0.4], [MEAN])
    limits.prices.values = [0.5]
    penalised = limits.penalised(torch.tensor([1.0, 0.5]), MEAN)
    assert penalised.tolist() == pytest.approx([1.0 - 0.5 / 0.5 * 1.0, 0.5 - 0.5 / 0.5 * 0.4])
    assert limits.penalised(torch.tensor([1.0, 0.5]), DEADLINE).tolist() == pytest.approx([-torch.inf, 0.5])


def test_a_deadline_leaves_the_margin_as_long_as_a_setting_is_left():
    limits = Limits([1.0, 0.48, 0.2], [], margin=0.1)
    scores = torch.tensor([1.0, 0.9, 0.8])
    assert limits.choose(scores, Budget(kind="deadline", fraction=0.5)) == 2  # .48 > .5 * (1 - .1) = .45
    assert limits.choose(scores, Budget(kind="deadline", fraction=0.54)) == 1  # .48 <= .54 * .9 = .486
    assert limits.choose(scores, Budget(kind="deadline", fraction=0.21)) == 2  # .2 > .21 * .9, but nothing is faster


def test_a_budget_that_no_setting_can_meet_names_the_cheapest():
    limits = Limits([1.0, 0.23456], [])
    with pytest.raises(BudgetError, match=r"budget mean 0.2 of full; the cheapest needs 0.2346 of full, ask for"):
        limits.choose(torch.zeros(2), Budget(kind="mean", fraction=0.2))
    limits.latencies.tail = 1.5
    with pytest.raises(TooTightError, match=r"deadline 0.3 of full") as caught:
        limits.choose(torch.zeros(2), Budget(kind="deadline", fraction=0.3))
    assert caught.value.cheapest == pytest.approx(0.23456 * 1.5)
    limits.choose(torch.zeros(2), Budget(kind="deadline", fraction=0.3519))  # what the message says is enough


def test_settling_keeps_every_mean_budget_between_the_cheapest_and_the_dearest():
    means = [1.0, 0.7, 0.4, 0.2]
    limits = Limits(means, [], margin=0.01)
    scores = torch.rand(400, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 0.9, 0.8, 0.4])
    limits.settle(lambda budget: scores)
    for fraction in (0.21, 0.3, 0.45, 0.6, 0.8, 0.99):
        budget = Budget(kind="mean", fraction=fraction)
        spent = sum(means[limits.choose(row, budget)] for row in scores) / len(scores)
        assert spent <= fraction * 1.005


def test_fresh_means_replace_the_old_and_move_those_without():
    latencies = Limits([1.0, 0.5, 0.2], []).latencies
    latencies.renew(torch.tensor([1.1, 0.65, torch.nan], dtype=torch.float64))
    # the mean of 1.1 / 1 and .65 / .5 is 1.2
    assert latencies.means.tolist() == pytest.approx([1.1, 0.65, 0.2 * 1.2])


def test_the_mean_price_is_that_of_full():
    limits = Limits([1.0, 0.5], [MEAN, Budget(kind="mean", fraction=0.25), DEADLINE])
    limits.prices.values = [0.1, 0.3]  # under .25 and .5
    assert limits.mean_price() == pytest.approx((0.1 / 0.25 + 0.3 / 0.5) / 2)
    assert Limits([1.0], []).mean_price() == 0


def test_state_comes_back():
    limits = Limits([1.0, 0.5], [MEAN])
    limits.latencies.add(torch.tensor([0, 1]), torch.tensor([1.2, 0.4]))
    limits.prices.values = [0.7]
    for load, state in ((Limits.load, limits.state()), (Limits.load_policy_state, limits.policy_state())):
        other = Limits([0.9, 0.9], [])
        load(other, state)
        assert other.latencies.means.tolist() == limits.latencies.means.tolist()
        assert other.latencies.tail == limits.latencies.tail
        assert other.prices.at(0.5) == 0.7
