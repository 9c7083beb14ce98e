"""The policy gradient: advantages, loss and probabilities against arithmetic and finite differences."""

from math import log

import pytest
import torch

from chronostat.control.learners.base import Outcome
from chronostat.control.learners.rloo import Policy, group_advantages, policy_loss, start_logits
from chronostat.records import Budget
from stand_ins.control_fixtures import BUDGETS, LATENCIES, OBSERVATION_SIZE, SPACE, make_learner, outcome, teach

ALL = torch.ones(4, dtype=torch.bool)
REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.0])


def test_rloo_compares_each_draw_with_the_mean_of_the_others():
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.5]), ALL[:3], "rloo")
    # 1 - (0 + .5) / 2, 0 - (1 + .5) / 2, .5 - (1 + 0) / 2
    assert advantages.tolist() == pytest.approx([0.75, -0.75, 0.0])


def test_grpo_without_and_with_division_by_the_standard_deviation():
    assert group_advantages(REWARDS, ALL, "grpo_nostd").tolist() == pytest.approx([0.5, -0.5, 0.5, -0.5])
    # the standard deviation is .5, and .1 is added: .5 / .6
    assert group_advantages(REWARDS, ALL, "grpo").tolist() == pytest.approx(
        [0.5 / 0.6, -0.5 / 0.6, 0.5 / 0.6, -0.5 / 0.6]
    )


def test_noise_on_a_tie_stays_noise_where_nothing_is_divided():
    tie = torch.tensor([1.0, 1.01, 0.99, 1.0])
    assert float(group_advantages(tie, ALL, "rloo").abs().max()) == pytest.approx(0.01 * 4 / 3, abs=1e-6)
    assert float(group_advantages(tie, ALL, "grpo").abs().max()) < 0.1


def test_draws_that_failed_leave_the_group():
    valid = torch.tensor([True, True, False, False])
    rewards = torch.tensor([1.0, 0.2, 99.0, -99.0])
    assert group_advantages(rewards, valid, "rloo").tolist() == pytest.approx([0.8, -0.8, 0.0, 0.0])


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "grpo_nostd"])
def test_a_draw_alone_says_nothing(estimator):
    assert group_advantages(torch.tensor([0.7]), ALL[:1], estimator).tolist() == [0.0]


def test_gradient_of_the_loss_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    draws = torch.tensor([0, 3, 3, 1])
    advantages = torch.tensor([0.5, -0.2, 0.1, -0.4], dtype=torch.float64)

    policy_loss(logits.log_softmax(0)[draws], logits.detach().log_softmax(0)[draws], advantages, 3.0).sum().backward()

    def objective(values):  # of the present policy every weight is 1
        return -(advantages * values.log_softmax(0)[draws]).sum()

    step = 1e-6
    for i in range(5):
        offset = torch.zeros(5, dtype=torch.float64)
        offset[i] = step
        slope = (objective(logits.detach() + offset) - objective(logits.detach() - offset)) / (2 * step)
        assert float(logits.grad[i]) == pytest.approx(float(slope), abs=1e-7)


def test_the_gradient_raises_what_was_better_and_lowers_what_was_worse():
    logits = torch.zeros(3, requires_grad=True)
    policy_loss(
        logits.log_softmax(0)[[0, 1]], torch.full((2,), -log(3)), torch.tensor([1.0, -1.0]), 3.0
    ).sum().backward()
    # -(1 - 1/3 + 1/3), -(-1/3 - 2/3), 0
    assert logits.grad.tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_importance_weights_are_clipped_and_held_constant():
    now, then = torch.tensor([log(0.5), log(0.1)]), torch.tensor([log(0.1), log(0.2)])
    loss = policy_loss(now, then, torch.tensor([1.0, 1.0]), clip=3.0)
    # .5 / .1 = 5, clipped to 3; .1 / .2 = .5
    assert loss.tolist() == pytest.approx([-3.0 * log(0.5), -0.5 * log(0.1)])

    free = now.clone().requires_grad_()
    policy_loss(free, then, torch.tensor([1.0, 1.0]), clip=3.0).sum().backward()
    assert free.grad.tolist() == pytest.approx([-3.0, -0.5])


def test_one_softmax_over_the_summed_logits_of_the_heads():
    policy = make_policy()
    with torch.no_grad():
        policy.start.zero_()
        policy.budget_heads[0] = torch.tensor([0.0, 1.0, 2.0, 0.0, 10.0, 20.0])  # three levels of each of two knobs
    log_probabilities = policy(torch.zeros(1, OBSERVATION_SIZE), torch.eye(len(BUDGETS))[:1])[0, 0].detach()
    expected = torch.tensor([a + b for a in (0.0, 1.0, 2.0) for b in (0.0, 10.0, 20.0)]).log_softmax(0)
    assert torch.allclose(log_probabilities, expected, atol=1e-6)
    assert float(log_probabilities.exp().sum()) == pytest.approx(1)


def make_policy():
    start = torch.stack([start_logits(LATENCIES, budget) for budget in BUDGETS])
    return Policy(SPACE, OBSERVATION_SIZE, BUDGETS, start, 16, torch.Generator().manual_seed(0))


def test_budgets_between_those_of_the_training_are_interpolated_and_never_with_the_other_kind():
    policy = make_policy()
    assert policy.position(BUDGETS[1]).tolist() == pytest.approx([0, 1, *[0] * 8])
    # .5 lies a third of the way from .45 to .6
    assert policy.position(Budget(kind="mean", fraction=0.5)).tolist() == pytest.approx([0, 2 / 3, 1 / 3, *[0] * 7])
    assert policy.position(Budget(kind="mean", fraction=0.01)).tolist() == pytest.approx([1, *[0] * 9])
    assert policy.position(Budget(kind="deadline", fraction=2.0)).tolist() == pytest.approx([*[0] * 9, 1])


@pytest.mark.parametrize("fraction", [0.3, 0.45, 0.6, 0.9])
def test_before_anything_is_learned_the_policy_costs_its_budget(fraction):
    means = torch.tensor(LATENCIES)
    probabilities = start_logits(LATENCIES, Budget(kind="mean", fraction=fraction)).softmax(0)
    assert float(probabilities @ means) == pytest.approx(fraction, abs=1e-3)


def test_before_anything_is_learned_a_deadline_leaves_what_meets_it_alike():
    logits = start_logits([1.0, 0.5, 0.4], Budget(kind="deadline", fraction=0.5))
    assert logits.tolist() == pytest.approx([-20.0, 0.0, 0.0])  # -20 * (1 / .5 - 1)


def test_draws_follow_the_probabilities_that_the_loss_uses():
    learner = make_learner("rloo")
    seen, budget = torch.rand(OBSERVATION_SIZE), BUDGETS[2]
    draws = learner.propose(seen, budget, 20_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(draws, minlength=len(SPACE)) / len(draws)
    probabilities = learner._log_probabilities(seen[None], budget)[0].detach().exp()
    assert float((shares - probabilities).abs().max()) < 0.015  # 4 standard errors of a share are at most .014


def test_every_head_has_a_gradient():
    learner = make_learner("rloo")
    teach(learner, range(3))  # the first observation is the mean of all so far, so a request says nothing yet
    for name, parameter in learner._policy.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name
    assert bool((learner._policy.heads.grad != 0).any(dim=0).all())  # every level of every knob
    assert bool((learner._policy.budget_heads.grad != 0).all())  # under every budget


def test_the_first_update_moves_every_level_under_every_budget():
    learner = make_learner("rloo")
    teach(learner, range(1))
    assert bool((learner._policy.budget_heads.grad != 0).all())


def test_a_better_draw_becomes_likelier_under_every_budget_that_it_keeps():
    learner = make_learner("rloo", ("rloo", "entropy", 0.0))
    seen = torch.zeros(OBSERVATION_SIZE)
    good, bad = 4, 5
    before = log_odds(learner, seen, good, bad)
    outcome = Outcome(
        observation=seen,
        settings=torch.tensor([good, bad]),
        quality=torch.tensor([1.0, 0.0]),
        latency=torch.tensor([0.3, 0.3]),
        budget=BUDGETS[0],
    )
    learner.learn(outcome)
    assert all(after > was for after, was in zip(log_odds(learner, seen, good, bad), before, strict=True))


def log_odds(learner, seen, first, second):
    rows = [learner._log_probabilities(seen[None], budget)[0] for budget in BUDGETS]
    return [float((row[first] - row[second]).detach()) for row in rows]


def test_the_multiplier_of_a_budget_rises_while_the_policy_exceeds_it():
    learner = make_learner("rloo", ("reward", "multiplier_rate", 0.5))
    with torch.no_grad():
        learner._policy.start.zero_()
        learner._policy.start[:, 0] = 20.0  # always full
    teach(learner, range(1))
    costs = learner._multipliers["mean"]
    # about .5 * (1 / limit - 1): full costs 1, measured with 10 % of noise
    assert costs.values == pytest.approx([0.5 * (1 / limit - 1) for limit in costs.fractions], abs=0.05)


def test_an_outcome_of_one_draw_changes_no_vote():
    learner = make_learner("rloo", ("rloo", "entropy", 0.0))
    before = learner.policy_state()
    one = outcome(learner, 0)
    learner.learn(
        Outcome(
            observation=one.observation,
            settings=one.settings[:1],
            quality=one.quality[:1],
            latency=one.latency[:1],
            budget=one.budget,
        )
    )
    after = learner.policy_state()
    assert torch.equal(before["model.budget_heads"], after["model.budget_heads"])
