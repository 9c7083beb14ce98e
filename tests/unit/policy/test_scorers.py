"""How settings are valued, by hand."""

import numpy as np
import pytest
import torch

from chronostat.control.learners import LEARNERS
from chronostat.errors import StoreError
from chronostat.policy.scorers import (
    SCORERS,
    NetworkScorer,
    QualityScorer,
    restored_scorer,
    scores_by_budget,
)
from chronostat.records import Budget
from stand_ins.control_fixtures import BUDGETS, make_pupil, observation

MEAN = Budget(kind="mean", fraction=0.5)
CHAIN = np.triu(np.ones((3, 3), dtype=bool))
QUALITY = QualityScorer(by_setting=np.array([[0.2, 0.5, 0.4], [0.0, 0.1, -0.1]]), order=CHAIN)
NETWORK = NetworkScorer(
    means=np.array([0.2, 0.6]),
    deadlines=np.array([0.5]),
    request=np.array([[0.5, -1.0], [1.0, 1.0]]),
    bias=np.array([0.0, 0.5]),
    heads=np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]),
    budgets=np.array([[0.0, 0.0, 0.0], [4.0, 0.0, -4.0], [7.0, 8.0, 9.0]]),
)


def test_qualities_are_along_the_order():
    scores = QUALITY.scores(np.array([[1.0, 0.0], [1.0, 1.0]]), MEAN)
    # .2 .5 .4 and .2 .6 .3: of both the last two in the middle
    assert scores.tolist() == [pytest.approx([0.2, 0.45, 0.45]), pytest.approx([0.2, 0.45, 0.45])]


def test_alike_is_the_mean_over_requests_for_every_request():
    prompts = np.array([[1.0, 1.0], [1.0, 3.0]])
    alike = QualityScorer.alike(QUALITY.by_setting, CHAIN, prompts)
    # mean of the second feature 2: .2, .7, .2 along the order
    expected = pytest.approx([0.2, 0.45, 0.45])
    assert alike.scores(np.array([[1.0, -5.0], [1.0, 9.0]]), MEAN).tolist() == [expected, expected]


def test_a_network_by_hand():
    # hidden: .5 + 2 = 2.5 and max(0, -1 + 2 + .5) = 1.5; heads: 2.5, 4.5, 5
    prompts = np.array([[1.0, 2.0], [1.0, -1.0]])
    at_first = NETWORK.scores(prompts, Budget(kind="mean", fraction=0.2))
    assert at_first[0].tolist() == pytest.approx([2.5, 4.5, 5.0])
    assert at_first[1].tolist() == [0.0, 0.0, 0.0]  # neither hidden value is above 0
    # a quarter of the way from .2 to .6
    between = NETWORK.scores(prompts, Budget(kind="mean", fraction=0.3))
    assert between[0].tolist() == pytest.approx([3.5, 4.5, 4.0])
    beyond = NETWORK.scores(prompts, Budget(kind="mean", fraction=0.9))
    assert beyond[0].tolist() == pytest.approx([6.5, 4.5, 1.0])
    deadline = NETWORK.scores(prompts, Budget(kind="deadline", fraction=0.3))
    assert deadline[0].tolist() == pytest.approx([9.5, 12.5, 14.0])


def test_the_network_is_that_of_the_learner():
    pupil = make_pupil("rloo")
    pupil.teach(range(8))
    scorer, policy = pupil.learner.scorer(), pupil.learner._policy
    prompts = pupil.evidence.features(observation(1, np.random.default_rng(0)).prompt[None])
    for budget in (*BUDGETS, Budget(kind="mean", fraction=0.5), Budget(kind="deadline", fraction=0.05)):
        with torch.no_grad():
            expected = policy(torch.from_numpy(prompts).float(), policy.position(budget)[None])[0, 0].double().numpy()
        found = scorer.scores(prompts, budget)[0]
        assert found - found[0] == pytest.approx(expected - expected[0], abs=1e-4)


def test_scores_that_know_no_budget_are_worked_out_once():
    calls = []

    class Counting(QualityScorer):
        def scores(self, prompts, budget):
            calls.append(budget)
            return super().scores(prompts, budget)

    scores_at = scores_by_budget(Counting(by_setting=QUALITY.by_setting, order=CHAIN), np.ones((4, 2)))
    assert np.array_equal(scores_at(BUDGETS[0]), scores_at(BUDGETS[7]))
    assert len(calls) == 1
    scores_at = scores_by_budget(NETWORK, np.ones((4, 2)))
    assert not np.array_equal(scores_at(BUDGETS[0]), scores_at(BUDGETS[7]))


@pytest.mark.parametrize(("learner", "scorer"), [("direct", QUALITY), ("rloo", NETWORK)])
def test_what_is_stored_scores_the_same(learner, scorer):
    other = restored_scorer(learner, scorer.state())
    prompts = np.random.default_rng(0).standard_normal((5, 2))
    assert all(np.array_equal(other.scores(prompts, b), scorer.scores(prompts, b)) for b in BUDGETS)


def test_every_learner_has_a_scorer():
    assert SCORERS.keys() == LEARNERS.keys()
    with pytest.raises(StoreError, match=r"unknown learner 'ppo'; known learners: direct, rloo$"):
        restored_scorer("ppo", {})
