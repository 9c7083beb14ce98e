"""Every learner: learns a small problem with a known answer, from a seed alone, and continues bit for bit."""

from collections import Counter

import pytest
import torch

from chronostat.control.learners import LEARNERS, learner_by_name
from chronostat.errors import BudgetError, ConfigError
from chronostat.records import Budget
from chronostat.tensors import read_tensors, write_tensors
from stand_ins.control_fixtures import (
    BUDGETS,
    DEEP,
    FINE,
    OBSERVATION_SIZE,
    SPACE,
    best_fixed,
    differing,
    judge,
    make_learner,
    observation,
    outcome,
    settle,
    teach,
)

each = pytest.mark.parametrize("name", LEARNERS)
each_taught = pytest.mark.parametrize(
    "name", [name if name == "direct" else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS]
)
STEPS = 600


class Taught(dict):
    """Learners that were taught and settled, by name; each when it is asked for first."""

    def __missing__(self, name):
        learner = self[name] = make_learner(name, *FASTER.get(name, ()))
        teach(learner, range(STEPS))
        settle(learner)
        return learner


@pytest.fixture(scope="module")
def taught():
    return Taught()


FASTER = {"rloo": (("rloo", "learning_rate", 5e-3), ("rloo", "entropy", 0.01))}


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.45, 0.65, 0.7])
@each_taught
def test_it_beats_the_best_fixed_setting_within_the_budget(name, taught, fraction):
    accuracy, mean = judge(taught[name], Budget(kind="mean", fraction=fraction))
    assert accuracy >= best_fixed(fraction) + 0.1
    assert mean <= fraction * 1.03


@pytest.mark.slow
@each_taught
def test_the_budget_binds(name, taught):
    learner = taught[name]
    accuracies = [judge(learner, Budget(kind="mean", fraction=fraction))[0] for fraction in (0.25, 0.35, 0.45, 0.65)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] - accuracies[0] > 0.3


@each_taught
def test_both_kinds_get_what_they_need(name, taught):
    generator = torch.Generator().manual_seed(5)
    chosen = {
        kind: Counter(
            SPACE.settings[taught[name].decide(observation(kind, generator), Budget(kind="mean", fraction=0.65))]
            for _ in range(50)
        ).most_common(1)[0][0]
        for kind in (FINE, DEEP)
    }
    assert chosen[FINE]["vision_tokens"] == 4
    assert chosen[DEEP]["block_skip"] == ()
    assert chosen[FINE] != chosen[DEEP]


@each_taught
def test_a_deadline_is_kept_by_every_choice(name, taught):
    generator = torch.Generator().manual_seed(6)
    limits = taught[name]._limits
    for fraction in (0.4, 0.6, 0.8):
        budget = Budget(kind="deadline", fraction=fraction)
        choices = {taught[name].decide(observation(i % 2, generator), budget) for i in range(50)}
        assert all(float(limits.latencies.means[i]) * limits.latencies.tail <= fraction for i in choices)


@each_taught
def test_a_budget_below_the_cheapest_setting_is_refused_by_decisions_but_not_by_proposals(name, taught):
    tight = Budget(kind="mean", fraction=0.01)
    with pytest.raises(BudgetError, match=r"no setting can meet the budget mean 0.01 of full; the cheapest needs 0.2"):
        taught[name].decide(torch.zeros(OBSERVATION_SIZE), tight)
    draws = taught[name].propose(torch.zeros(OBSERVATION_SIZE), tight, 4, torch.Generator())
    assert draws.shape == (4,)


@each
def test_the_seed_decides_everything(name):
    first, second, other = (make_learner(name, seed=seed) for seed in (3, 3, 4))
    for learner in (first, second, other):
        teach(learner, range(15))
    assert differing(first.state(), second.state()) == []
    assert differing(first.state(), other.state())


@each
def test_nothing_is_random_but_the_generator_that_is_given(name):
    learner = make_learner(name)
    teach(learner, range(5))
    seen = observation(FINE, torch.Generator().manual_seed(0))
    draws = [learner.propose(seen, BUDGETS[1], 6, torch.Generator().manual_seed(8)).tolist() for _ in range(3)]
    assert draws[0] == draws[1] == draws[2]
    assert len({learner.decide(seen, BUDGETS[1]) for _ in range(5)}) == 1


@each
def test_draws_are_with_replacement(name):
    draws = make_learner(name).propose(torch.zeros(OBSERVATION_SIZE), BUDGETS[2], 50, torch.Generator())
    assert draws.shape == (50,)
    assert draws.dtype == torch.int64
    assert len(set(draws.tolist())) <= len(SPACE)


@each
def test_training_continues_bit_for_bit_through_a_file(name, tmp_path):
    whole = make_learner(name)
    teach(whole, range(20))

    half = make_learner(name)
    teach(half, range(10))
    write_tensors(tmp_path / "state.safetensors", half.state(), {})
    resumed = make_learner(name, seed=99)
    resumed.load_state(read_tensors(tmp_path / "state.safetensors")[0])
    teach(resumed, range(10, 20))

    assert differing(whole.state(), resumed.state()) == []


@each
def test_a_state_is_a_copy(name):
    learner = make_learner(name)
    teach(learner, range(3))
    state = learner.state()
    kept = {key: value.clone() for key, value in state.items()}
    teach(learner, range(3, 6))
    assert differing(state, kept) == []


@each_taught
def test_the_policy_state_decides_the_same(name, taught, tmp_path):
    learner = taught[name]
    write_tensors(tmp_path / "policy.safetensors", learner.policy_state(), {})
    other = make_learner(name, seed=99)
    other.load_policy_state(read_tensors(tmp_path / "policy.safetensors")[0])
    generator = torch.Generator().manual_seed(7)
    for i in range(60):
        seen = observation(i % 2, generator)
        budget = BUDGETS[i % len(BUDGETS)]
        assert learner.decide(seen, budget) == other.decide(seen, budget)


@each
def test_learning_tells_how_it_went_and_leaves_the_outcome_alone(name):
    learner = make_learner(name)
    given = outcome(learner, 0)
    kept = given.observation.clone()
    metrics = learner.learn(given)
    assert all(isinstance(value, float) for value in metrics.values())
    assert torch.equal(given.observation, kept)


@each
def test_an_unknown_learner_names_those_that_exist(name):
    with pytest.raises(ConfigError, match=rf"unknown learner 'ppo'; known learners: .*{name}"):
        learner_by_name("ppo")
