"""Rewards: hand-computed values, and the configuration that names them."""

import pytest
import torch

from chronostat.config import RewardConfig
from chronostat.control.reward import REWARDS, lagrange, mnasnet, overshoot, reward_for

CONFIG = RewardConfig()


def value(reward, quality, latency, limit, multiplier=0.0):
    arguments = (torch.tensor(float(x)) for x in (quality, latency, limit, multiplier))
    return float(reward(*arguments, CONFIG))


def test_lagrange_takes_the_multiplier_times_the_relative_excess():
    assert value(lagrange, 1, 0.5, 0.4, 2) == pytest.approx(1 - 2 * 0.25)  # 0.5 / 0.4 - 1 = 0.25
    assert value(lagrange, 1, 0.3, 0.4, 2) == pytest.approx(1 + 2 * 0.25)  # 0.3 / 0.4 - 1 = -0.25
    assert value(lagrange, 1, 0.5, 0.4, 0) == 1


def test_overshoot_punishes_only_what_is_above_the_limit():
    assert value(overshoot, 1, 0.5, 0.4) == pytest.approx(0)  # 1 - 4 * 0.25
    assert value(overshoot, 1, 0.4, 0.4) == pytest.approx(1)
    assert value(overshoot, 1, 0.1, 0.4) == pytest.approx(1)


def test_a_right_answer_25_percent_over_its_deadline_is_worth_no_more_than_a_wrong_one_within():
    assert value(overshoot, 1, 0.5, 0.4) <= value(overshoot, 0, 0.2, 0.4) + 1e-6


def test_mnasnet():
    assert value(mnasnet, 0.8, 0.8, 0.4) == pytest.approx(0.8 * 2**-0.07)
    assert value(mnasnet, 0, 0.1, 0.4) == 0


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_broadcast_over_budgets_and_draws(name):
    rewards = REWARDS[name].value(torch.rand(4), torch.rand(4) + 0.1, torch.rand(3, 1) + 0.1, torch.rand(3, 1), CONFIG)
    assert rewards.shape == (3, 4)


def test_the_configuration_names_a_reward_for_each_kind_of_budget():
    config = RewardConfig(mean="mnasnet", deadline="lagrange")
    assert reward_for("mean", config).value is mnasnet
    assert reward_for("deadline", config).value is lagrange
    assert reward_for("mean", CONFIG).value is lagrange
    assert reward_for("deadline", CONFIG).value is overshoot


def test_price_is_the_slope_of_the_reward_beyond_the_limit():
    multipliers = torch.tensor([0.5, 2.0])
    assert REWARDS["lagrange"].price(multipliers, CONFIG).tolist() == [0.5, 2.0]
    assert REWARDS["overshoot"].price(multipliers, CONFIG).tolist() == [4.0, 4.0]
    assert REWARDS["mnasnet"].price(multipliers, CONFIG).tolist() == [0.0, 0.0]
