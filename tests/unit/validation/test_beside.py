"""Policies beside the controller: what they learn, and what they choose within a budget."""

import numpy as np
import pytest

from chronostat.data.samples import Sample
from chronostat.errors import ConfigError
from chronostat.knobs.space import ActionSpace
from chronostat.policy.frontier import Requests
from chronostat.policy.priced import Priced
from chronostat.records import Budget
from chronostat.validation.beside import BESIDE
from chronostat.validation.beside.kinds import KnowingKinds
from stand_ins.control_fixtures import forecast_of

SPACE = ActionSpace({"vision_tokens": (272, 80, 16)})
LATENCY = [1.0, 0.5, 0.2]
EVERYTHING, CHANCES = np.arange(3), np.full(3, 1 / 3)
RIGHT = {"colour": np.array([1.0, 1.0, 1.0]), "digit": np.array([1.0, 0.0, 0.0])}


@pytest.fixture(scope="module")
def knowing():
    """Colours are right under every setting, digits under full alone."""
    learned = KnowingKinds(SPACE, ["digit", "colour", "colour"], 0)
    for _ in range(40):
        for kind, quality in RIGHT.items():
            learned.learn(kind, EVERYTHING, CHANCES, quality)
    return learned


def test_each_kind_is_valued_by_itself(knowing):
    found = knowing.scores(["colour", "digit", "colour"])
    assert found[0] == pytest.approx(RIGHT["colour"], abs=0.05)
    assert found[1] == pytest.approx(RIGHT["digit"], abs=0.05)
    assert np.array_equal(found[0], found[2])


def test_of_another_kind_it_knows_what_all_have_in_common(knowing):
    common = knowing.scores(["weather"])[0]
    assert common == pytest.approx([1.0, 0.5, 0.5], abs=0.3)
    assert common[0] > common[1]


def test_what_it_is_told_later_counts():
    learned = KnowingKinds(SPACE, ["digit"], 0)
    before = learned.scores(["digit"])
    for _ in range(20):
        learned.learn("digit", EVERYTHING, CHANCES, np.zeros(3))
    assert (learned.scores(["digit"]) < before - 0.3).all()


def requests(count):
    return Requests(prompts=np.ones((count, 1)), tokens=np.full((count, 3, 2), 10.0))


@pytest.fixture(scope="module")
def priced(knowing):
    unseen = ["colour", "digit"] * 50
    legal = np.ones(3, dtype=np.bool_)
    return Priced.of(knowing.scores(unseen), forecast_of(LATENCY), requests(100), legal, 0.0)


def test_within_a_mean_it_gives_what_is_left_to_the_kind_that_needs_it(knowing, priced):
    scores = knowing.scores(["colour", "digit"])
    # half of the requests at .2 and half at 1 take .6
    assert priced.choices(scores, requests(2), Budget(kind="mean", fraction=0.61), 0.5).tolist() == [2, 0]
    digits = [
        int(priced.choices(scores, requests(2), Budget(kind="mean", fraction=0.4), coin)[1])
        for coin in np.linspace(0, 0.999, 200)
    ]
    # .4 is half of the way from .2 to .6
    assert np.mean(np.array(digits) == 0) == pytest.approx(0.5, abs=0.02)


def test_within_a_deadline_it_takes_what_is_in_time(knowing, priced):
    scores = knowing.scores(["colour", "digit"])
    # 5 of 100 residuals lie beyond 1.78 spreads of .1: 1 * exp(.178) = 1.19 is the first that full keeps
    assert 0 not in priced.choices(scores, requests(2), Budget(kind="deadline", fraction=1.0), 0.5)
    assert priced.choices(scores, requests(2), Budget(kind="deadline", fraction=1.3), 0.5)[1] == 0


def test_what_may_not_be_chosen_is_not(knowing):
    legal = np.array([True, True, False])
    scores = knowing.scores(["colour", "digit"])
    priced = Priced.of(scores, forecast_of(LATENCY), requests(2), legal, 0.0)
    for budget in (Budget(kind="mean", fraction=0.6), Budget(kind="deadline", fraction=0.7)):
        assert 2 not in priced.choices(scores, requests(2), budget, 0.5)


def test_samples_without_a_kind_are_refused_by_their_place():
    sample = Sample(id="a", split="test", prompt="What?", references=(), load_images=tuple, where="own.jsonl, line 3")
    with pytest.raises(ConfigError, match=r"is told the kind of each question, and own\.jsonl, line 3 says none; name"):
        BESIDE["kind"].sees(sample)
    assert BESIDE["vowpalwabbit"].sees(sample) == "What?"
