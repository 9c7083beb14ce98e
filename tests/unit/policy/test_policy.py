"""The frozen policy: what it plays where, what it refuses, and that it is the same after it was stored."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from chronostat.control.learners import LEARNERS, learner_by_name
from chronostat.errors import BudgetError, StoreError
from chronostat.evidence.evidence import Answers
from chronostat.policy.policy import Gains, Policy, TooTightError
from chronostat.policy.rivals import rivals_of
from chronostat.records import Budget
from stand_ins.control_fixtures import (
    BUDGETS,
    DEEP,
    FINE,
    LATENCIES,
    SPACE,
    Pupil,
    answers,
    best_fixed,
    config_of,
    forecast_of,
    judge,
    make_evidence,
    make_pupil,
    observation,
)
from stand_ins.made_up_policy import made_up, request_alike

LATENCY = np.array([1.0, 0.6, 0.5, 0.2])
QUALITY = np.array([0.9, 0.6, 0.7, 0.2])
COINS = (np.arange(200) + 0.5) / 200


def mean(fraction):
    return Budget(kind="mean", fraction=fraction)


def deadline(fraction):
    return Budget(kind="deadline", fraction=fraction)


@pytest.fixture(scope="module", params=LEARNERS)
def taught(request):
    pupil = make_pupil(request.param)
    pupil.teach(range(60))
    pupil.learner.finish()
    return pupil


# what needs no looking: the plain arm


def played(policy, fraction):
    """Mean quality and latency over all coins."""
    chosen = [policy.decide(request_alike(len(policy.legal)), mean(fraction), coin) for coin in COINS]
    return policy.plain_quality[chosen].mean(), policy.forecast.mean(np.ones((1, 1)), _tokens(policy))[0, chosen].mean()


def _tokens(policy):
    return request_alike(len(policy.legal)).tokens[None]


@pytest.mark.parametrize("fraction", [0.2 + 1e-9, 0.3, 0.35, 0.5, 0.65, 0.8, 1.0])
def test_the_plain_arm_is_the_best_static_mix(fraction):
    policy = made_up(QUALITY, LATENCY)
    assert not policy.gains["mean"].is_learned(fraction)
    # the hull passes .2 at .2, .7 at .5 and .9 at 1, above .6 at .6
    expected = np.interp(fraction, [0.2, 0.5, 1.0], [0.2, 0.7, 0.9])
    accuracy, cost = played(policy, fraction)
    assert accuracy == pytest.approx(expected, abs=0.003)
    assert cost == pytest.approx(fraction, abs=0.005)
    mix = rivals_of(policy, mean(fraction)).mix
    assert (1 - mix.share) * QUALITY[mix.low] + mix.share * QUALITY[mix.high] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_no_static_mix_is_better_whatever_the_numbers(seed):
    rng = np.random.default_rng(seed)
    latency = np.concatenate([[1.0], rng.uniform(0.1, 1.0, 4)])
    policy = made_up(rng.random(5), latency)
    for fraction in (latency.min() + np.array([0.1, 0.4, 0.9]) * (1 - latency.min())).tolist():
        mix = rivals_of(policy, mean(fraction)).mix
        best = (1 - mix.share) * policy.plain_quality[mix.low] + mix.share * policy.plain_quality[mix.high]
        accuracy, cost = played(policy, fraction)
        assert accuracy >= best - 0.006
        assert cost <= fraction + 0.006


def test_a_margin_leaves_some_of_each_mean_budget():
    policy = made_up(QUALITY, LATENCY, margin=0.1)
    assert played(policy, 0.5)[1] == pytest.approx(0.45, abs=0.003)
    assert policy.cheapest("mean") == pytest.approx(0.2 / 0.9)


def test_the_controllers_own_latency_is_part_of_the_budget():
    policy = made_up(QUALITY, LATENCY, forecast=forecast_of(LATENCY, controller=0.1))
    assert played(policy, 0.6)[1] == pytest.approx(0.6, abs=0.003)
    assert policy.cheapest("mean") == pytest.approx(0.3)
    # .5 * exp(.178) + .1 = .6974 is the first deadline that 95 % keep with setting 2
    assert policy.decide(request_alike(4), deadline(0.72), 0.5) == 2
    assert policy.decide(request_alike(4), deadline(0.6), 0.5) == 3


# which arm


def test_the_learned_arm_is_played_from_the_nearest_budget_that_is_no_looser():
    gains = Gains(fractions=np.array([0.2, 0.4, 0.8]), least=np.array([-0.01, 0.02, 0.0]))
    assert [gains.is_learned(f) for f in (0.1, 0.2, 0.39, 0.4, 0.79, 0.8, 2.0)] == [
        False,
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert gains.learned_share == pytest.approx(1 / 3)


@pytest.mark.parametrize("fraction", [0.3, 0.45, 0.65, 0.7])
def test_what_was_learned_beats_the_best_fixed_setting_and_the_best_mix(taught, fraction):
    policy = taught.policy()
    assert policy.gains["mean"].is_learned(fraction)
    accuracy, cost = judge(policy, mean(fraction))
    mix = rivals_of(policy, mean(fraction)).mix
    plain = (1 - mix.share) * policy.plain_quality[mix.low] + mix.share * policy.plain_quality[mix.high]
    assert accuracy >= max(best_fixed(fraction), plain) + 0.04
    assert cost == pytest.approx(fraction, rel=0.1)


def test_a_looser_budget_buys_more(taught):
    policy = taught.policy()
    accuracies = [judge(policy, mean(fraction))[0] for fraction in (0.25, 0.35, 0.45, 0.65)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] - accuracies[0] > 0.3


def test_both_kinds_get_what_they_need(taught):
    policy, rng = taught.policy(), np.random.default_rng(5)
    chosen = [{policy.decide(observation(kind, rng), mean(0.65), 0.5) for _ in range(20)} for kind in (FINE, DEEP)]
    assert {SPACE.settings[i]["vision_tokens"] for i in chosen[FINE]} == {4}
    assert {SPACE.settings[i]["block_skip"] for i in chosen[DEEP]} == {()}


def of_noise(requests, learner="direct"):
    """What was learned where every answer is right or wrong by the toss of a coin, whatever the setting."""
    evidence, rng = make_evidence(0), np.random.default_rng(1)
    everything = np.arange(len(SPACE))
    for i in range(requests):
        measured = answers(i % 2, everything, rng)
        quality = rng.integers(2, size=len(SPACE)).astype(np.float64)
        evidence.add(observation(i % 2, rng), Answers(settings=everything, quality=quality, latency=measured.latency))
    made = learner_by_name(learner)(SPACE, evidence, config_of(learner), BUDGETS, 0)
    made.finish()
    return Pupil(name=learner, evidence=evidence, learner=made).policy()


@pytest.mark.parametrize("learner", LEARNERS)
def test_where_the_evidence_is_noise_the_plain_arm_is_played(learner):
    policy = of_noise(30, learner)
    assert policy.gains["mean"].learned_share <= 0.1
    assert policy.gains["deadline"].learned_share <= 0.1


def test_between_two_settings_of_the_mix_what_was_learned_is_played_where_it_gains():
    """Where the mix has no corner."""
    pupil = make_pupil("direct")
    pupil.teach(range(60))
    policy = pupil.policy()
    corners = np.unique(policy.frontiers["plain"].costs.round(6))
    assert not ((corners > 0.36) & (corners < 0.45)).any()
    assert policy.gains["mean"].is_learned(0.4)


# what is refused


def test_a_budget_that_no_setting_can_meet_names_the_cheapest():
    policy = made_up(QUALITY, np.array([1.0, 0.6, 0.5, 0.23456]))
    with pytest.raises(
        BudgetError,
        match=r"^no setting can meet the budget mean 0.2 of full; the cheapest needs 0.2346 of full, ask for at least "
        r"that$",
    ):
        policy.decide(request_alike(4), mean(0.2), 0.5)
    policy.decide(request_alike(4), mean(0.2346), 0.5)  # what the message says is enough
    with pytest.raises(TooTightError, match=r"the budget deadline 0.2 of full; the cheapest needs 0.23") as caught:
        policy.decide(request_alike(4), deadline(0.2), 0.5)
    assert caught.value.cheapest == pytest.approx(0.23456, rel=5e-3)  # half of the residuals lie beyond 0
    assert policy.decide(request_alike(4), deadline(0.24), 0.5) == 3


def test_a_setting_that_was_taken_out_is_never_chosen(taught):
    rng = np.random.default_rng(0)
    legal = np.ones(len(SPACE), dtype=bool)
    legal[[2, 6, 7]] = False  # all that the kinds want most
    policy = taught.policy(legal)
    chosen = {
        policy.decide(observation(i % 2, rng), budget, rng.random())
        for i in range(40)
        for budget in (*BUDGETS, mean(5.0), deadline(5.0))
        if budget.fraction >= policy.cheapest(budget.kind)
    }
    assert chosen
    assert not chosen & {2, 6, 7}
    for learned in (True, False):  # in either arm
        gains = {
            kind: Gains(fractions=np.array([0.0]), least=np.array([1.0 if learned else -1.0])) for kind in policy.gains
        }
        forced = replace(policy, gains=gains)
        assert not {forced.decide(observation(i % 2, rng), mean(0.7), rng.random()) for i in range(40)} & {2, 6, 7}


def test_without_its_cheapest_setting_a_budget_is_too_tight():
    policy = made_up(QUALITY, LATENCY, legal=[True, True, True, False])
    with pytest.raises(BudgetError, match=r"mean 0.3 of full; the cheapest needs 0.5\d* of full"):
        policy.decide(request_alike(4), mean(0.3), 0.5)


# stored, renewed


def test_what_was_stored_decides_the_same_bit_for_bit(taught):
    policy = taught.policy()
    state = policy.state()
    assert all(value.dtype == np.float64 for value in state.values())
    other = Policy.restored(taught.name, state)
    assert all(np.array_equal(value, state[name]) for name, value in other.state().items())
    rng = np.random.default_rng(7)
    for i in range(60):
        seen, coin = observation(i % 2, rng), rng.random()
        budget = BUDGETS[i % len(BUDGETS)]
        if budget.fraction >= policy.cheapest(budget.kind):
            assert policy.decide(seen, budget, coin) == other.decide(seen, budget, coin)
    assert other.cheapest("deadline") == policy.cheapest("deadline")


def test_arrays_of_another_policy_are_no_policy():
    state = made_up(QUALITY, LATENCY).state()
    with pytest.raises(StoreError, match="unknown learner 'ppo'"):
        Policy.restored("ppo", state)
    del state["draws"]
    with pytest.raises(KeyError, match="draws"):
        Policy.restored("direct", state)


def test_another_forecast_renews_the_prices_and_no_knowledge_of_quality():
    policy = made_up(QUALITY, LATENCY)
    slower = policy.renewed(forecast_of(np.array([1.0, 0.3, 0.8, 0.2])), policy.legal)
    assert np.array_equal(slower.plain_quality, policy.plain_quality)
    # now the mix passes .2 at .2 and .6 at .3
    assert played(slower, 0.3)[0] == pytest.approx(0.6, abs=0.003)
    assert played(slower, 0.3)[1] == pytest.approx(0.3, abs=0.003)
    assert policy.cheapest("mean") == slower.cheapest("mean")


def test_nothing_but_numpy_is_needed_to_decide():
    modules = "evidence.evidence", "policy.policy", "policy.rivals"
    code = "; ".join(f"import chronostat.{module}" for module in modules)
    heavy = "{'torch', 'transformers', 'scipy', 'sklearn', 'pydantic', 'pandas'}"
    check = f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_latencies_are_those_of_the_small_problem(taught):
    found = taught.evidence.forecast().mean(taught.evidence.prompts, taught.evidence.tokens).mean(axis=0)
    assert found == pytest.approx(LATENCIES, rel=0.15)
