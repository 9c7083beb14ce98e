"""The share of deadlines that are kept, with its interval."""

import math

import pytest

from chronostat.serving.promises import Promises


def made(kept, missed):
    promises = Promises()
    for each in [True] * kept + [False] * missed:
        promises.add(kept=each)
    return promises


def test_the_interval_is_that_of_wilson():
    share = made(15, 5).share
    # middle (.75 + 3.8416 / 40) / (1 + 3.8416 / 20), around 1.96 * sqrt(.75 * .25 / 20 + 3.8416 / 1600) / 1.19208
    assert (share.point, share.low, share.high) == pytest.approx((0.75, 0.5313, 0.8881), abs=1e-4)


def test_before_the_first_promise_there_is_no_share_and_none_is_broken():
    assert math.isnan(Promises().share.point)
    assert not Promises().broken
    assert Promises().said() == {"point": None, "low": None, "high": None, "requests": 0}


def test_promises_are_broken_beyond_doubt_or_not_at_all():
    assert not made(0, 19).broken  # too few to say
    assert not made(17, 3).broken  # 97.0 % is not excluded
    assert made(15, 5).broken  # 92.6 % at most: (.75 + 9 / 40) / 1.45 + 3 * sqrt(.75 * .25 / 20 + 9 / 1600) / 1.45
    assert not made(190, 10).broken


def test_what_was_long_ago_does_not_count():
    promises = made(1000, 0)
    for _ in range(25):
        promises.add(kept=False)
    assert len(promises) == 200
    assert promises.share.point == pytest.approx(175 / 200)
    assert promises.broken
