"""Lagrange multipliers: dual ascent, interpolation and the fit of a frozen policy."""

import pytest
import torch

from chronostat.control.learners.multipliers import Multipliers, penalised


def test_ascent_follows_the_relative_excess_and_stops_at_zero():
    multipliers = Multipliers([0.5, 0.25])
    assert multipliers.fractions == [0.25, 0.5]
    multipliers.ascend([0.5, 0.4], rate=0.1)
    # .1 * (.5 / .25 - 1), max(0, .1 * (.4 / .5 - 1))
    assert multipliers.values == pytest.approx([0.1, 0.0])
    multipliers.ascend([0.2, 0.6], rate=0.1)
    # .1 + .1 * (.2 / .25 - 1), .1 * (.6 / .5 - 1)
    assert multipliers.values == pytest.approx([0.08, 0.02])


def test_between_budgets_a_multiplier_is_interpolated_and_beyond_them_it_is_constant():
    multipliers = Multipliers([0.2, 0.4])
    multipliers.values = [1.0, 3.0]
    assert multipliers.at(0.2) == pytest.approx(1.0)
    assert multipliers.at(0.25) == pytest.approx(1.5)  # 3/4 * 1 + 1/4 * 3
    assert multipliers.at(0.4) == pytest.approx(3.0)
    assert multipliers.at(0.1) == 1.0
    assert multipliers.at(0.9) == 3.0
    assert Multipliers([]).at(0.3) == 0.0


def test_penalised_takes_the_price_per_fraction_of_full():
    scores = penalised(torch.tensor([1.0, 0.5]), 0.2, torch.tensor([1.0, 0.4]), 0.5)
    assert scores.tolist() == pytest.approx([1 - 0.4 * 1.0, 0.5 - 0.4 * 0.4])  # .2 / .5 = .4


LATENCY = torch.tensor([1.0, 0.4], dtype=torch.float64)


def test_fit_is_the_smallest_price_at_which_the_budget_is_kept():
    # gains of the dear setting over the cheap one: .9, .6, .3, .1; a budget of .7 pays for two of four dear ones
    scores = torch.tensor([[0.9, 0.0], [0.6, 0.0], [0.3, 0.0], [0.1, 0.0]], dtype=torch.float64)
    multipliers = Multipliers([0.7])
    multipliers.fit([scores], LATENCY, margin=0.0, lowest=0.0)
    # the third gives up the dear one when .3 = m / .7 * .6
    assert multipliers.values[0] == pytest.approx(0.3 * 0.7 / 0.6, rel=1e-3)
    assert spent(scores, multipliers, 0.7) == pytest.approx(0.7)


def spent(scores, multipliers, limit):
    choices = penalised(scores, multipliers.at(limit), LATENCY, limit).argmax(dim=-1)
    return float(LATENCY[choices].mean())


@pytest.mark.parametrize("limit", [0.45, 0.55, 0.8, 0.95])
def test_what_is_fitted_keeps_the_budget_less_the_margin(limit):
    scores = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    multipliers = Multipliers([limit])
    multipliers.fit([scores], LATENCY, margin=0.02, lowest=0.0)
    assert spent(scores, multipliers, limit) <= limit * 0.98


def test_a_budget_that_does_not_bind_has_no_price():
    multipliers = Multipliers([0.9])
    multipliers.fit([torch.tensor([[0.0, 1.0]])], LATENCY, margin=0.01, lowest=0.0)
    assert multipliers.values == [0.0]


def test_below_zero_what_the_scores_leave_of_a_budget_is_spent():
    scores = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3], [0.0, 0.4]], dtype=torch.float64)
    multipliers = Multipliers([0.7])
    multipliers.fit([scores], LATENCY, margin=0.0, lowest=-100.0)
    assert multipliers.values[0] < 0
    assert spent(scores, multipliers, 0.7) == pytest.approx(0.7)


def test_state_comes_back():
    multipliers = Multipliers([0.2, 0.4])
    multipliers.ascend([0.5, 0.5], 0.3)
    other = Multipliers([])
    other.load(multipliers.state())
    assert (other.fractions, other.values) == (multipliers.fractions, multipliers.values)
