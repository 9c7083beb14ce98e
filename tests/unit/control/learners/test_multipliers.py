"""Lagrange multipliers: dual ascent and interpolation."""

import pytest

from chronostat.control.learners.multipliers import Multipliers


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
