"""What is regressed on: the kernel over prompts by its own definition, codes of settings by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronostat.evidence.features import (
    PROMPT_FEATURES,
    PromptFeatures,
    at_most,
    level_ranks,
    setting_features,
)
from chronostat.knobs.space import ActionSpace
from stand_ins.control_fixtures import SPACE

# prompts


def prompts(count, width=5, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width))


def test_products_of_features_are_the_kernel():
    given = prompts(12)
    features = PromptFeatures.of(given, 0)
    values = features(given)[:, 1:]
    squared = ((given[:, None] - given) ** 2).sum(axis=2)
    scale = np.median(squared[~np.eye(12, dtype=bool)])
    assert features.scale == pytest.approx(scale)
    assert values @ values.T == pytest.approx(np.exp(-squared / scale), abs=1e-6)


def test_features_are_orthogonal_over_the_requests_and_the_strongest_come_first():
    given = prompts(200)
    values = PromptFeatures.of(given, 0)(given)[:, 1:]
    moments = values.T @ values / len(given)
    assert moments == pytest.approx(np.diag(np.diag(moments)), abs=1e-9)
    assert (np.diff(np.diag(moments)) <= 1e-12).all()
    assert values.shape[1] == PROMPT_FEATURES


def test_the_first_feature_is_constant_and_a_prompt_unlike_any_other_has_no_other():
    features = PromptFeatures.of(prompts(30), 0)
    assert features.size == 1 + PROMPT_FEATURES
    assert features(prompts(3))[:, 0].tolist() == [1.0] * 3
    assert features(1e3 * np.ones((1, 5)))[0].tolist() == [1.0, *[0.0] * PROMPT_FEATURES]


def test_how_often_a_prompt_comes_counts():
    often, rare = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]])
    features = PromptFeatures.of(np.concatenate([often.repeat(9, axis=0), rare]), 0)
    first = features(np.concatenate([often, rare]))[:, 1]
    assert abs(first[0]) > 2 * abs(first[1])  # the leading one is of what comes most


@pytest.mark.parametrize("given", [np.zeros((4, 3)), np.ones((1, 3))])
def test_one_prompt_alone_differs_from_nothing(given):
    features = PromptFeatures.of(given, 0)
    assert features.size == 2
    assert np.abs(features(given)).tolist() == [[1.0, 1.0]] * len(given)


def test_the_seed_draws_what_is_compared_with():
    given = prompts(400)
    first, second, other = (PromptFeatures.of(given, seed) for seed in (3, 3, 4))
    assert first.anchors.shape[0] == 256
    assert np.array_equal(first(given), second(given))
    assert not np.array_equal(first(given), other(given))


def test_its_state_gives_the_same_features():
    features = PromptFeatures.of(prompts(40), 0)
    assert np.array_equal(PromptFeatures.restored(features.state())(prompts(5, seed=1)), features(prompts(5, seed=1)))


# settings


def test_codes_by_hand():
    codes = setting_features(SPACE)  # tokens 4, 2, 1 by blocks (), (1,), (1, 2)
    assert codes.shape == (9, 1 + 2 + 2 + 1)
    assert codes[0].tolist() == [1, 0.5, 0.5, 0.5, 0.5, 1]  # full: both steps of both knobs, 1 * 1
    assert codes[1].tolist() == [1, 0.5, 0.5, 0.5, -0.5, 0]  # one block less: 1 * 0
    assert codes[2].tolist() == [1, 0.5, 0.5, -0.5, -0.5, -1]
    assert codes[8].tolist() == [1, -0.5, -0.5, -0.5, -0.5, 1]  # the cheapest: -1 * -1


def test_three_knobs_have_a_product_of_all_three_and_one_with_one_value_has_none():
    space = ActionSpace({"a": (2, 1), "b": (2, 1), "c": (2, 1), "d": (7,)})
    codes = setting_features(space)
    assert codes.shape == (8, 1 + 3 + 3 + 1)
    assert codes[-1].tolist() == [1, -0.5, -0.5, -0.5, 1, 1, 1, -1]


def ranks(**levels):
    return level_ranks(ActionSpace(levels))[:, 0].tolist()


def test_values_are_ranked_by_what_they_compute():
    assert ranks(vision_tokens=(272, 16, 80)) == [2, 0, 1]
    assert ranks(block_skip=((), (3, 4), (2, 3, 4))) == [2, 1, 0]
    assert ranks(moe_topk=((4, 4, 2), (1, 1, 1), (2, 2, 2))) == [2, 0, 1]


def test_a_number_for_each_block_is_compared_with_one_for_all_of_them():
    assert ranks(moe_topk=(2, (2, 1), 1)) == [2, 1, 0]
    assert ranks(moe_topk=((4, 4, 2), 3, 1)) == [2, 1, 0]


def test_values_that_compute_as_much_are_told_apart_and_neither_is_more():
    space = ActionSpace({"block_skip": ((), (3, 4), (1, 2), (1,))})
    assert sorted(level_ranks(space)[:, 0].tolist()) == [0, 1, 2, 3]
    assert at_most(space).tolist() == [
        [True, False, False, False],
        [True, True, False, True],
        [True, False, True, True],
        [True, False, False, True],
    ]


def test_at_most_by_hand():
    order = at_most(SPACE)
    assert order[:, 0].all()  # none does more than full
    assert order[8].all()
    assert not order[1, 3]  # fewer blocks, more tokens
    assert not order[3, 1]
    assert order[4, 1]
    assert not order[1, 4]


LEVELS = st.dictionaries(
    st.sampled_from(["vision_tokens", "moe_topk", "cache"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    min_size=1,
)


@settings(max_examples=40)
@given(LEVELS)
def test_codes_tell_all_settings_apart_and_doing_at_most_is_a_partial_order(levels):
    space = ActionSpace(levels)
    assert len(np.unique(setting_features(space), axis=0)) == len(space)
    order = at_most(space)
    assert order.diagonal().all()
    assert not (order & order.T & ~np.eye(len(space), dtype=bool)).any()
    assert not ((order.astype(int) @ order.astype(int) > 0) & ~order).any()


def test_a_share_beside_a_number_lies_between_it_and_all():
    # of 8 blocks: 2 and three quarters of the tokens in the other 6 are 6.5
    assert ranks(drop_after=(8, 4, "2:0.75")) == [2, 0, 1]
    assert ranks(drop_after=(8, "4:0.25", 4, "4:0.75", 2)) == [4, 2, 1, 3, 0]
