"""The policy gradient: advantages, loss and probabilities against arithmetic and finite differences."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from chronostat.control.learners.base import Outcome
from chronostat.control.learners.rloo import Policy, group_advantages, policy_loss, start_logits
from chronostat.records import Budget
from stand_ins.control_fixtures import BUDGETS, LATENCIES, SPACE, known, make_pupil, observation

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
    log_probabilities = policy(torch.zeros(1, 4), torch.eye(len(BUDGETS))[:1])[0, 0].detach()
    expected = torch.tensor([a + b for a in (0.0, 1.0, 2.0) for b in (0.0, 10.0, 20.0)]).log_softmax(0)
    assert torch.allclose(log_probabilities, expected, atol=1e-6)
    assert float(log_probabilities.exp().sum()) == pytest.approx(1)


def make_policy():
    start = torch.stack([start_logits(LATENCIES.tolist(), budget) for budget in BUDGETS])
    return Policy(SPACE, 4, BUDGETS, start, 16, torch.Generator().manual_seed(0))


def test_budgets_between_those_of_the_training_are_interpolated_and_never_with_the_other_kind():
    policy = make_policy()
    assert policy.position(BUDGETS[1]).tolist() == pytest.approx([0, 1, *[0] * 8])
    # .5 lies a third of the way from .45 to .6
    assert policy.position(Budget(kind="mean", fraction=0.5)).tolist() == pytest.approx([0, 2 / 3, 1 / 3, *[0] * 7])
    assert policy.position(Budget(kind="mean", fraction=0.01)).tolist() == pytest.approx([1, *[0] * 9])
    assert policy.position(Budget(kind="deadline", fraction=2.0)).tolist() == pytest.approx([*[0] * 9, 1])


@pytest.mark.parametrize("fraction", [0.3, 0.45, 0.6, 0.9])
def test_before_anything_is_learned_the_policy_costs_its_budget(fraction):
    means = torch.tensor(LATENCIES, dtype=torch.float32)
    probabilities = start_logits(LATENCIES.tolist(), Budget(kind="mean", fraction=fraction)).softmax(0)
    assert float(probabilities @ means) == pytest.approx(fraction, abs=1e-3)


def test_before_anything_is_learned_a_deadline_leaves_what_meets_it_alike():
    logits = start_logits([1.0, 0.5, 0.4], Budget(kind="deadline", fraction=0.5))
    assert logits.tolist() == pytest.approx([-20.0, 0.0, 0.0])  # -20 * (1 / .5 - 1)


def seen_of(kind=0):
    return observation(kind, np.random.default_rng(0))


def probabilities_of(pupil, seen, budget):
    """Under one budget, [S]."""
    learner = pupil.learner
    with torch.no_grad():
        rows = learner._policy(learner._features(seen), learner._policy.position(budget)[None], learner._legal)
    return rows[0, 0].double().exp().numpy()


def test_draws_follow_the_probabilities_that_the_loss_uses():
    pupil, seen, budget = make_pupil("rloo"), seen_of(), BUDGETS[2]
    pupil.teach(range(3))
    draws = pupil.learner.propose(seen, budget, 20_000, np.random.default_rng(0)).settings
    shares = np.bincount(draws, minlength=len(SPACE)) / len(draws)
    # 4 standard errors of a share are at most .014
    assert np.abs(shares - probabilities_of(pupil, seen, budget)).max() < 0.015


def test_a_proposal_tells_the_exact_probability_of_each_draw_and_how_much_was_learned():
    pupil, seen = make_pupil("rloo"), seen_of()
    assert pupil.learner.propose(seen, BUDGETS[0], 4, np.random.default_rng(0)).version == 0
    pupil.teach(range(3))
    for budget in (BUDGETS[1], BUDGETS[7], Budget(kind="mean", fraction=0.5)):
        proposal = pupil.learner.propose(seen, budget, 8, np.random.default_rng(0))
        expected = probabilities_of(pupil, seen, budget)
        assert proposal.probabilities == pytest.approx(expected[proposal.settings], rel=1e-6)
        assert proposal.version == 3


def test_every_head_has_a_gradient():
    pupil = make_pupil("rloo")
    pupil.teach(range(3))
    policy = pupil.learner._policy
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name
    assert bool((policy.heads.grad != 0).any(dim=0).all())  # every level of every knob
    assert bool((policy.budget_heads.grad != 0).all())  # under every budget
    assert pupil.learner.head_gradients().keys() == {"vision_tokens", "block_skip"}
    assert all(length > 0 for length in pupil.learner.head_gradients().values())


def test_before_the_first_update_no_head_has_a_gradient():
    assert make_pupil("rloo").learner.head_gradients() == {}


GOOD, BAD = 4, 5


def group(probabilities=(0.1, 0.1), quality=(1.0, 0.0), latency=(0.3, 0.3), budget=BUDGETS[0]):
    return Outcome(
        observation=seen_of(),
        settings=np.array([GOOD, BAD])[: len(quality)],
        probabilities=np.array(probabilities[: len(quality)]),
        quality=np.array(quality),
        latency=np.array(latency[: len(quality)]),
        budget=budget,
    )


def log_odds(pupil):
    rows = [probabilities_of(pupil, seen_of(), budget) for budget in BUDGETS]
    return [log(row[GOOD] / row[BAD]) for row in rows]


@pytest.mark.parametrize("budget", [BUDGETS[0], None])
def test_a_better_draw_becomes_likelier_under_every_budget(budget):
    pupil = make_pupil("rloo", ("rloo", "entropy", 0.0))
    before = log_odds(pupil)
    metrics = pupil.learner.learn(group(budget=budget))
    assert all(after > was for after, was in zip(log_odds(pupil), before, strict=True))
    assert ("multiplier" in metrics) == (budget is not None)  # settings drawn alike are drawn under none


def test_outcomes_are_weighted_by_how_likely_they_are_now_over_how_likely_they_were():
    """The gradient of one group under one budget: weight * advantage * (1 - p), by finite differences."""
    pupil = make_pupil("rloo", ("rloo", "entropy", 0.0), ("rloo", "weight_clip", 2.0))
    learner, outcome = pupil.learner, group(probabilities=(0.02, 0.9))
    parameter = learner._policy.budget_heads
    present = [probabilities_of(pupil, seen_of(), budget) for budget in BUDGETS]
    advantages = learner._advantages(outcome)
    weights = np.array([[min(2.0, row[GOOD] / 0.02), min(2.0, row[BAD] / 0.9)] for row in present])
    assert 2.0 in weights  # clipped somewhere
    assert weights.min() < 0.5

    def objective():
        rows = np.array([probabilities_of(pupil, seen_of(), budget) for budget in BUDGETS])
        return -(weights * advantages.numpy() * np.log(rows[:, [GOOD, BAD]])).mean()

    slopes = torch.zeros_like(parameter)
    for place in np.ndindex(*parameter.shape):
        found = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter[place] += step
                found.append(objective())
                parameter[place] -= step
        slopes[place] = (found[0] - found[1]) / 2e-2
    learner._optimizer = torch.optim.SGD(learner._policy.parameters(), lr=0.0)
    learner._update(outcome)
    assert parameter.grad.numpy() == pytest.approx(slopes.numpy(), abs=2e-4)
    assert parameter.grad.abs().max() > 1e-3


def test_the_multiplier_of_a_budget_rises_while_the_policy_exceeds_it():
    pupil = make_pupil("rloo", ("reward", "multiplier_rate", 0.5))
    with torch.no_grad():
        pupil.learner._policy.start.zero_()
        pupil.learner._policy.start[:, 0] = 20.0  # always full
    pupil.teach(range(1))
    costs = pupil.learner._multipliers["mean"]
    # about .5 * (1 / limit - 1): full costs 1 by the forecast
    assert costs.values == pytest.approx([0.5 * (1 / limit - 1) for limit in costs.fractions], abs=0.05)


def test_an_outcome_of_one_draw_changes_no_vote():
    pupil = make_pupil("rloo", ("rloo", "entropy", 0.0))
    before = pupil.learner.scorer()
    pupil.learner.learn(group(quality=(1.0,)))
    assert np.array_equal(pupil.learner.scorer().budgets, before.budgets)


def test_what_was_taken_out_has_no_probability_and_its_earlier_outcomes_do_no_harm():
    pupil = make_pupil("rloo")
    pupil.teach(range(4))
    pupil.learner.learn(group())
    pupil.learner.take_out([GOOD])
    pupil.learner.finish()
    arrays = known(pupil.evidence, pupil.learner)
    assert all(np.isfinite(value).all() for value in arrays.values())
    for budget in BUDGETS:
        row = probabilities_of(pupil, seen_of(), budget)
        assert row[GOOD] == 0
        assert row.sum() == pytest.approx(1)
        assert GOOD not in pupil.learner.propose(seen_of(), budget, 50, np.random.default_rng(0)).settings


def test_at_the_end_every_group_is_learned_from_again():
    pupil = make_pupil("rloo", ("rloo", "epochs", 3))
    pupil.teach(range(5))
    seen = []
    update = pupil.learner._update
    pupil.learner._update = lambda outcome: (seen.append(outcome), update(outcome))[1]
    pupil.learner.finish()
    assert len(seen) == 15
    for epoch in range(3):
        assert sorted(map(id, seen[5 * epoch : 5 * epoch + 5])) == sorted(map(id, pupil.learner._outcomes))


def test_a_group_is_no_less_of_it_for_what_each_draw_took():
    """Under a deadline that both keep latency says nothing; under one that one breaks it does."""
    pupil = make_pupil("rloo")
    rewards = pupil.learner._rewards(replace(group(), quality=np.ones(2), latency=np.array([0.2, 0.8])))
    deadlines = rewards[5:]
    assert deadlines.shape == (5, 2)
    assert deadlines[4].tolist() == [1.0, 1.0]  # .9
    assert deadlines[2].tolist() == pytest.approx([1.0, 1 - 4 * (0.8 / 0.6 - 1)])
