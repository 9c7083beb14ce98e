"""What holds for all inputs: advantages, rewards, settings, spaces and records."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chronostat.config import RewardConfig
from chronostat.control.learners.multipliers import Multipliers
from chronostat.control.learners.rloo import group_advantages, policy_loss
from chronostat.control.reward import REWARDS
from chronostat.data.quality import QUALITIES
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Setting, knob_value
from chronostat.scorers.folding import plain

CONFIG = RewardConfig()
REAL = st.floats(-10, 10)
GROUP = st.lists(st.tuples(REAL, st.booleans()), min_size=1, max_size=8)
ESTIMATOR = st.sampled_from(["rloo", "grpo", "grpo_nostd"])
KNOB_VALUE = st.integers(0, 999) | st.lists(st.integers(0, 99), max_size=4).map(tuple)
KNOB = st.sampled_from(["vision_tokens", "moe_topk", "block_skip", "cache"])


def split(group):
    rewards, valid = zip(*group, strict=True)
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid)


@given(GROUP, ESTIMATOR)
def test_advantages_sum_to_0_and_are_0_for_what_does_not_count(group, estimator):
    rewards, valid = split(group)
    advantages = group_advantages(rewards, valid, estimator)
    assert float(advantages.sum()) == pytest.approx(0, abs=1e-9)
    assert bool((advantages[~valid] == 0).all())


@given(GROUP, ESTIMATOR, REAL)
def test_advantages_do_not_change_when_all_rewards_shift(group, estimator, shift):
    rewards, valid = split(group)
    before, after = (group_advantages(r, valid, estimator) for r in (rewards, rewards + shift))
    assert torch.allclose(before, after, atol=1e-9)


@given(GROUP, ESTIMATOR)
def test_advantages_keep_the_order_of_the_rewards(group, estimator):
    rewards, valid = split(group)
    counted = group_advantages(rewards, valid, estimator)[valid]
    if len(counted) > 1:
        order = rewards[valid].argsort()
        assert bool((counted[order].diff() >= -1e-9).all())


@given(GROUP)
def test_rloo_compares_with_the_mean_of_the_others(group):
    rewards, valid = split(group)
    advantages = group_advantages(rewards, valid, "rloo")[valid]
    kept = rewards[valid]
    if len(kept) > 1:
        others = [float(kept[i]) - float(torch.cat([kept[:i], kept[i + 1 :]]).mean()) for i in range(len(kept))]
        assert advantages.tolist() == pytest.approx(others, abs=1e-9)


@given(
    st.sampled_from(sorted(REWARDS)),
    st.floats(0, 1),
    st.floats(0.05, 2),
    st.floats(0, 1),
    st.floats(0.1, 1),
    st.floats(0, 5),
)
def test_the_reward_never_rises_with_latency_and_never_falls_with_quality(
    name, quality, latency, more, limit, multiplier
):
    def reward(q, latency):
        values = (torch.tensor(v, dtype=torch.float64) for v in (q, latency, limit, multiplier))
        return float(REWARDS[name].value(*values, CONFIG))

    assert reward(quality, latency + more) <= reward(quality, latency) + 1e-9
    assert reward(min(1.0, quality + more), latency) >= reward(quality, latency) - 1e-9


@given(st.lists(st.floats(-30, 0), min_size=1, max_size=6), st.floats(1, 5), st.integers(0, 10_000))
def test_importance_weights_never_exceed_the_clip(log_probabilities, clip, seed):
    now = torch.tensor(log_probabilities, requires_grad=True)
    drawn = -5 * torch.rand(len(now), generator=torch.Generator().manual_seed(seed))
    policy_loss(now, drawn, torch.ones(len(now)), clip).sum().backward()
    assert now.grad is not None
    assert bool((now.grad.abs() <= clip + 1e-6).all())


@given(st.dictionaries(KNOB, KNOB_VALUE))
def test_a_setting_survives_text_and_json(values):
    setting = Setting(values)
    assert Setting.parse(str(setting)) == setting
    assert dict(setting) == values
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(json.dumps(dict(setting))).items()}
    assert Setting(plain) == setting
    assert hash(Setting(dict(reversed(values.items())))) == hash(setting)


@given(st.dictionaries(KNOB, st.lists(KNOB_VALUE, min_size=1, max_size=4, unique=True), min_size=1))
def test_index_and_settings_of_a_space_are_inverse(levels):
    space = ActionSpace(levels)
    assert [space.index(setting) for setting in space.settings] == list(range(len(space)))
    assert space.full == Setting({knob: values[0] for knob, values in levels.items()})
    plain = json.loads(json.dumps(space.to_json()))
    assert {knob: tuple(map(knob_value, values)) for knob, values in plain.items()} == space.levels
    for setting, row in zip(space.settings, space.level_indices, strict=True):
        assert setting == Setting({knob: levels[knob][i] for knob, i in zip(levels, row, strict=True)})


@given(st.floats(0.01, 2), st.floats(1, 1e4), st.sampled_from(["mean", "deadline"]))
def test_a_budget_in_ms_and_back(fraction, full_ms, kind):
    budget = Budget(kind=kind, fraction=fraction)
    assert Budget(kind=kind, fraction=budget.ms(full_ms) / full_ms).fraction == pytest.approx(fraction)


@given(st.lists(st.floats(0.05, 2), min_size=1, max_size=6), st.floats(0, 0.5), st.integers(0, 10_000))
def test_a_multiplier_is_never_negative_and_rises_only_where_its_budget_is_exceeded(fractions, rate, seed):
    multipliers = Multipliers(fractions)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        before, costs = multipliers.values, rng.uniform(0.05, 2, len(multipliers.fractions)).tolist()
        multipliers.ascend(costs, rate)
        for was, now, cost, limit in zip(before, multipliers.values, costs, multipliers.fractions, strict=True):
            assert now >= 0
            assert now <= was or cost > limit
    assert min(multipliers.values) <= multipliers.at(rng.uniform(0, 3)) <= max(multipliers.values)


@given(
    st.sampled_from(sorted(QUALITIES)), st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=12)
)
def test_quality_is_between_0_and_1_and_blind_to_the_order_of_references(name, answer, references):
    score = QUALITIES[name](answer, references)
    assert 0 <= score <= 1 + 1e-9
    assert QUALITIES[name](answer, references[::-1]) == pytest.approx(score)
    by_itself = QUALITIES[name](references[0], [references[0]] * 4)
    if not plain(references[0]):
        assert by_itself == 0  # nothing is never right
    elif name not in {"number", "yes_no"}:  # which read some texts only
        assert by_itself == 1
