"""Every learner: proposes from a seed alone, learns from outcomes alone, and lets go of what is taken out."""

import numpy as np
import pytest

from chronostat.control.learners import LEARNERS, learner_by_name
from chronostat.errors import ConfigError
from chronostat.records import Budget
from stand_ins.control_fixtures import (
    BUDGETS,
    FINE,
    LATENCIES,
    SPACE,
    config_of,
    differing,
    known,
    make_evidence,
    make_pupil,
    observation,
)

each = pytest.mark.parametrize("name", LEARNERS)


def seen_of(kind=FINE):
    return observation(kind, np.random.default_rng(0))


@each
def test_the_seed_decides_everything(name):
    first, second, other = (make_pupil(name, seed=seed) for seed in (3, 3, 4))
    for pupil in (first, second, other):
        pupil.teach(range(6))
        pupil.learner.finish()
    assert differing(known(first.evidence, first.learner), known(second.evidence, second.learner)) == []
    assert differing(known(first.evidence, first.learner), known(other.evidence, other.learner))


@each
def test_whoever_learns_the_same_outcomes_proposes_and_values_the_same(name):
    whole, outcomes = make_pupil(name), []
    for step in range(12):
        before = whole.evidence.quality.count
        outcomes.append(whole.outcome(step))
        assert whole.evidence.quality.count > before
        whole.learner.learn(outcomes[-1])
    again = make_pupil(name)
    for step, outcome in enumerate(outcomes):
        found = again.outcome(step)  # proposes, and tells the evidence
        assert np.array_equal(found.settings, outcome.settings)
        assert np.array_equal(found.probabilities, outcome.probabilities)
        again.learner.learn(outcome)
    assert differing(known(whole.evidence, whole.learner), known(again.evidence, again.learner)) == []


@each
def test_nothing_is_random_but_the_generator_that_is_given(name):
    pupil = make_pupil(name)
    pupil.teach(range(3))
    draws = [pupil.learner.propose(seen_of(), BUDGETS[1], 6, np.random.default_rng(8)) for _ in range(3)]
    assert draws[0].settings.tolist() == draws[1].settings.tolist() == draws[2].settings.tolist()
    others = [pupil.learner.propose(seen_of(), BUDGETS[1], 6, np.random.default_rng(i)) for i in range(20)]
    assert len({tuple(proposal.settings.tolist()) for proposal in others}) > 1


@each
def test_draws_are_with_replacement_and_each_has_its_probability(name):
    proposal = make_pupil(name).learner.propose(seen_of(), BUDGETS[2], 50, np.random.default_rng(0))
    assert proposal.settings.shape == proposal.probabilities.shape == (50,)
    assert set(proposal.settings.tolist()) <= set(range(len(SPACE)))
    assert ((proposal.probabilities > 0) & (proposal.probabilities <= 1)).all()
    distinct, places = np.unique(proposal.settings, return_index=True)
    assert len(distinct) < 50
    assert proposal.probabilities[places].sum() <= 1 + 1e-9


@each
def test_a_budget_below_the_cheapest_setting_is_answered_like_the_tightest(name):
    pupil = make_pupil(name)
    pupil.teach(range(5))
    for kind in ("mean", "deadline"):
        tight = pupil.learner.propose(seen_of(), Budget(kind=kind, fraction=0.01), 100, np.random.default_rng(0))
        loose = pupil.learner.propose(seen_of(), Budget(kind=kind, fraction=0.9), 100, np.random.default_rng(0))
        assert LATENCIES[tight.settings].mean() < LATENCIES[loose.settings].mean()


@each
def test_what_is_taken_out_is_never_proposed_again(name):
    pupil = make_pupil(name)
    pupil.learner.take_out([])
    pupil.teach(range(5))
    pupil.learner.take_out([8, 2])
    pupil.learner.take_out([6])
    pupil.teach(range(5, 15))
    drawn = {
        int(setting)
        for budget in BUDGETS
        for setting in pupil.learner.propose(seen_of(), budget, 60, np.random.default_rng(0)).settings
    }
    assert drawn
    assert not drawn & {2, 6, 8}


@each
def test_learning_tells_how_it_went_and_leaves_the_outcome_alone(name):
    pupil = make_pupil(name)
    outcome = pupil.outcome(0)
    kept = outcome.observation.prompt.copy(), outcome.quality.copy(), outcome.probabilities.copy()
    metrics = pupil.learner.learn(outcome)
    assert metrics
    assert all(isinstance(value, float) for value in metrics.values())
    assert np.array_equal(outcome.observation.prompt, kept[0])
    assert np.array_equal(outcome.quality, kept[1])
    assert np.array_equal(outcome.probabilities, kept[2])


@each
def test_a_scorer_learns_no_more(name):
    pupil = make_pupil(name)
    pupil.teach(range(3))
    scorer = pupil.learner.scorer()
    before = {key: value.copy() for key, value in scorer.state().items()}
    pupil.teach(range(3, 20))
    pupil.learner.finish()
    assert differing(before, scorer.state()) == []
    assert differing(before, pupil.learner.scorer().state())


@each
def test_an_unknown_learner_names_those_that_exist(name):
    with pytest.raises(ConfigError, match=rf"unknown learner 'ppo'; known learners: .*{name}"):
        learner_by_name("ppo")


@each
def test_it_is_made_from_its_name(name):
    made = learner_by_name(name)(SPACE, make_evidence(2), config_of(name), BUDGETS, 0)
    assert type(made) is LEARNERS[name]
