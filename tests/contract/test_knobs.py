"""One suite for all knobs, on the bundled model: the work changes, the state does not, illegal values are refused."""

import copy
import math
from collections import Counter
from functools import partial
from itertools import permutations, product

import pytest
import torch
from torch import nn

from chronostat.errors import KnobError
from chronostat.execution.execute import execute, request_for
from chronostat.knobs.registry import KNOBS, applied, find_knob, find_space
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.models.prepare import image_token_id
from chronostat.records import Setting
from stand_ins.batches import batch_of
from stand_ins.molmo_like import Block, MolmoLike, molmo_batch, molmo_like
from stand_ins.observing import Snapshot, counted_calls

# per knob: legal values beside the full one, and illegal ones with what the refusal must say
LEGAL = {
    "vision_tokens": [16, 80, 160],
    "moe_topk": [1, 2, 3, (4, 1, 1, 1, 1, 1, 1, 1), (4, 2, 4, 2, 4, 2, 1, 3)],
    "block_skip": [(0,), (7,), (2, 3), (0, 1, 2, 3, 4, 5, 6)],
    "image_keep": ["pool:0.25", "stride:80", "norm:17", "attention:0.5", "prompt:1"],
    "drop_after": [1, 7, "4:0.5"],
}
ILLEGAL = {
    "vision_tokens": (
        [0, -1, 273, True, (16,), [16], "16", 1.0, 80.0, 0.003, -0.5, math.nan],  # 0.003 of 272 is less than a token
        "legal: 1 to 272 tokens, of which the nearest of 16, 48, 64, 80,",
    ),
    "moe_topk": (
        [
            0,
            5,
            -1,
            True,
            (1,),
            2.0,
            (),
            (0, 1, 1, 1, 1, 1, 1, 1),
            (5, 1, 1, 1, 1, 1, 1, 1),
            [4] * 8,
            (4, 4, 4, True) * 2,
        ],
        "legal: 1 to 4 experts per token, or a tuple of one such number for each of the 8 decoder blocks with experts",
    ),
    "block_skip": (
        [3, (3, 2), (1, 1), (8,), (-1,), tuple(range(8)), [2, 3], (True,)],
        "legal: a tuple of ascending distinct block indices from 0 to 7, at most 7 of them",
    ),
    "image_keep": (
        [
            0,
            1,
            64,
            0.25,
            2.0,
            True,
            "pool",
            "pool:0",
            "pool:1.0",
            "pool:-1",
            "pool:nan",
            "pool:1.5",
            "mean:4",
            "pool:4:4",
        ],
        "legal: 1.0, or a method and what it keeps: pool, stride, norm, attention, prompt with a share below 1 or a",
    ),
    "drop_after": (
        [0, -1, 9, True, 4.0, (4,), "4", "4:0", "4:1.0", "8:0.5", "0:0.5", "4:x", ":0.5"],
        "legal: 1 to 8 blocks, or fewer than 8 and the share of image tokens that stays, such as 1:0.5",
    ),
}
CASES = [(name, value) for name, values in LEGAL.items() for value in values]
WRONG = [(name, value) for name, (values, _) in ILLEGAL.items() for value in values]


@pytest.fixture
def batch_under(bundled, demo_sample):
    def make(setting):
        knob = find_knob("vision_tokens", bundled.model, bundled.processor)
        arguments = knob.image_arguments(setting["vision_tokens"]) if "vision_tokens" in setting else {}
        return batch_of(bundled, demo_sample.load_images(), demo_sample.prompt, **arguments)

    return make


@pytest.fixture(scope="module")
def blocks(bundled):
    """The decoder blocks as the model was built."""
    return {index: bundled.model.get_submodule(path) for index, path in enumerate(anatomy_of(bundled.model).blocks)}


def work(model, blocks, batch, new_tokens=3):
    """What one call really did: image tokens made and read, (token, expert) pairs routed, decoder blocks run."""
    experts = [module for name, module in model.named_modules() if name.endswith("mlp.experts")]
    routed = Counter()

    def count(_, inputs):
        _, chosen, _ = inputs  # hidden states, index of each token's experts [tokens, k], their weights
        routed["pairs"] += chosen.numel()
        routed["tokens"] += chosen.shape[0]

    entered = {}

    def note_tokens(index, _, args, kwargs, output):
        entered.setdefault(index, (*args, *kwargs.values())[0].shape[1])

    handles = [module.register_forward_pre_hook(count) for module in experts]
    handles += [
        block.register_forward_hook(partial(note_tokens, index), with_kwargs=True) for index, block in blocks.items()
    ]
    with counted_calls(blocks) as ran:
        model.generate(**batch, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    for handle in handles:
        handle.remove()
    made = int((batch["input_ids"] == image_token_id(model)).sum())
    text, most = batch["input_ids"].shape[1] - made, max(entered.values())
    return {
        "vision_tokens": made,
        "image_keep": (most - text) / made,
        "drop_after": len(blocks) - sum(tokens < most for tokens in entered.values()),
        "moe_topk": routed["pairs"] / routed["tokens"],
        "block_skip": tuple(index for index in blocks if not ran[index]),
        "calls per running block": set(ran.values()),
    }


def counted(name, value):
    """What ``work`` says of a value: one number of experts for each block comes to their mean, as tokens are equal.

    Of the 272 image tokens the share that is left, and the blocks that all of them enter.
    """
    if name == "image_keep" and isinstance(value, str):
        amount = float(value.partition(":")[2])
        return amount if 0 < amount < 1 else amount / 272
    if name == "drop_after" and isinstance(value, str):
        return int(value.partition(":")[0])
    return sum(value) / len(value) if name == "moe_topk" and isinstance(value, tuple) else value


def test_every_knob_is_in_this_suite(bundled):
    assert LEGAL.keys() == ILLEGAL.keys() == KNOBS.keys()


@pytest.mark.parametrize(("name", "value"), CASES)
def test_the_work_really_changes(bundled, blocks, batch_under, name, value):
    setting = Setting({name: value})
    full = {knob: find_knob(knob, bundled.model, bundled.processor).full for knob in KNOBS}
    assert work(bundled.model, blocks, batch_under(Setting())) == {**full, "calls per running block": {3}}
    with applied(setting, bundled.model, bundled.processor):
        assert work(bundled.model, blocks, batch_under(setting)) == {
            **full,
            name: counted(name, value),
            "calls per running block": {3},
        }
    assert work(bundled.model, blocks, batch_under(Setting())) == {**full, "calls per running block": {3}}


@pytest.mark.parametrize(("name", "value"), CASES)
@pytest.mark.parametrize("error", [None, RuntimeError, pytest.param(KeyboardInterrupt, marks=pytest.mark.slow)])
def test_the_model_is_bit_equal_afterwards(bundled, demo_sample, monkeypatch, name, value, error):
    request = request_for(demo_sample, bundled.processor, None)
    execute(bundled.model, request, setting=Setting({name: value}), max_new_tokens=1)  # lazy hooks of the library
    before, config = Snapshot(bundled.model), copy.deepcopy(bundled.model.config.to_dict())
    if error is None:
        execute(bundled.model, request, setting=Setting({name: value}), max_new_tokens=2)
    else:

        def fail(_):
            raise error

        with monkeypatch.context() as broken:
            broken.setattr(bundled.model.lm_head, "forward", fail)
            with pytest.raises(error):
                execute(bundled.model, request, setting=Setting({name: value}), max_new_tokens=2)
    before.assert_equals(bundled.model)
    assert bundled.model.config.to_dict() == config


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_illegal_value_is_refused_and_names_the_legal_ones(bundled, demo_sample, name, value):
    before = Snapshot(bundled.model)
    knob = find_knob(name, bundled.model, bundled.processor)
    with pytest.raises(KnobError) as refused:
        knob.check(value)
    assert str(refused.value).startswith(f"{name} = {value!r} is not legal on this model; {ILLEGAL[name][1]}")
    request = request_for(demo_sample, bundled.processor, None)
    with pytest.raises(KnobError):
        execute(bundled.model, request, setting=Setting({name: value}), max_new_tokens=1)
    before.assert_equals(bundled.model)


@pytest.mark.parametrize("name", KNOBS)
def test_the_first_level_is_full_and_all_levels_are_legal(bundled, name):
    knob = find_knob(name, bundled.model, bundled.processor)
    assert knob.levels[0] == knob.full
    assert len(set(knob.levels)) == len(knob.levels) > 1
    for level in knob.levels:
        knob.check(level)


@pytest.mark.parametrize("name", KNOBS)
def test_full_changes_nothing(bundled, demo_sample, name):
    request = request_for(demo_sample, bundled.processor, None)
    plain = execute(bundled.model, request, setting=Setting(), max_new_tokens=3)
    full = Setting({name: find_knob(name, bundled.model, bundled.processor).full})
    with_full = execute(bundled.model, request, setting=full, max_new_tokens=3)
    assert (with_full.output_ids, with_full.image_tokens) == (plain.output_ids, plain.image_tokens)


@pytest.mark.parametrize("order", list(permutations(LEGAL))[::17])
def test_all_knobs_together_in_any_order(bundled, blocks, batch_under, order):
    values = {"vision_tokens": 80, "moe_topk": 1, "block_skip": (0, 4), "image_keep": "norm:0.25", "drop_after": 5}
    setting = Setting({name: values[name] for name in order})
    before = Snapshot(bundled.model)
    with applied(setting, bundled.model, bundled.processor):
        assert work(bundled.model, blocks, batch_under(setting)) == {
            **values,
            "image_keep": 0.25,
            "calls per running block": {3},
        }
    before.assert_equals(bundled.model)


def without_blocks(model, skipped):
    """The model as it would be built without those blocks: removed, renumbered, fewer in the config."""
    smaller = copy.deepcopy(model)
    layers = smaller.model.language_model.layers
    kept = [layer for index, layer in enumerate(layers) if index not in skipped]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    smaller.model.language_model.layers = nn.ModuleList(kept)
    smaller.config.text_config.num_hidden_layers = len(kept)
    if getattr(smaller.config.text_config, "layer_types", None):
        smaller.config.text_config.layer_types = smaller.config.text_config.layer_types[: len(kept)]
    return smaller


def left_padded(batch, padding):
    """Padding makes the mask matter, whose length is read from the first layer of the cache."""
    widened = {key: nn.functional.pad(batch[key], (padding, 0)) for key in ("input_ids", "attention_mask")}
    return {**batch, **widened}


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [(0,), (7,), (3, 4), (0, 1), (6, 7), (0, 2, 5, 7), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("padding", [0, 5])
def test_skipping_equals_a_model_built_without_those_blocks(bundled, demo_batch, skipped, padding):
    batch = left_padded(demo_batch, padding)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    expected = without_blocks(bundled.model, skipped).generate(**batch, **options)
    with applied(Setting(block_skip=skipped), bundled.model, bundled.processor):
        actual = bundled.model.generate(**batch, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(actual.logits, expected.logits, strict=True))


def test_skipping_differs_from_not_skipping(bundled, demo_batch):
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    full = bundled.model.generate(**demo_batch, **options).logits[0]
    with applied(Setting(block_skip=(3,)), bundled.model, bundled.processor):
        assert not torch.equal(bundled.model.generate(**demo_batch, **options).logits[0], full)


@pytest.mark.parametrize("skipped", [(0,), (3,), (0, 1), (1, 2), (0, 1, 2)])
def test_blocks_that_return_tuples_can_be_skipped(skipped):
    model, smaller = molmo_like(), molmo_like()
    blocks = smaller.model.transformer["blocks"]
    kept = [block for index, block in enumerate(blocks) if index not in skipped]
    for index, block in enumerate(kept):
        block.layer_idx = index
    smaller.model.transformer["blocks"] = nn.ModuleList(kept)
    smaller.config.num_hidden_layers = len(kept)
    expected = smaller.generate(**molmo_batch(), max_new_tokens=8)
    before = Snapshot(model)
    with applied(Setting(block_skip=skipped), model, None):
        assert torch.equal(measure_generate(model, molmo_batch(), max_new_tokens=8).sequences, expected)
    before.assert_equals(model)


class HandsCacheOn(Block):
    def forward(self, hidden, layer_past):
        return super().forward(hidden, layer_past)[0], (hidden, hidden)


def test_blocks_that_hand_on_a_cache_of_their_own_are_refused():
    model = molmo_like()
    model.model.transformer["blocks"][0].__class__ = HandsCacheOn
    with pytest.raises(KnobError, match=r"blocks of MolmoLike return more than the hidden states \(tuple\)"):
        find_knob("block_skip", model, None)


class NeedsImages(MolmoLike):
    def forward(self, input_ids, images=None, **kwargs):
        return super().forward(input_ids, images.float(), **kwargs)


def test_a_model_whose_blocks_cannot_be_seen_is_refused():
    with pytest.raises(KnobError, match="cannot see what the blocks of NeedsImages return"):
        find_knob("block_skip", molmo_like(NeedsImages), None)


def test_a_dense_model_has_no_moe_topk():
    model = molmo_like()
    for block in model.model.transformer["blocks"]:
        block.mlp = nn.Linear(16, 16)
    with pytest.raises(KnobError, match="moe_topk: MolmoLike has no router with an integer top_k, it is a dense model"):
        find_knob("moe_topk", model, None)


def test_moe_topk_of_the_stand_in_reaches_its_experts():
    model = molmo_like()
    experts = {
        f"{i}.{j}": e for i, b in enumerate(model.model.transformer["blocks"]) for j, e in enumerate(b.mlp.experts)
    }
    find_knob("moe_topk", model, None)  # looks at the experts once, with a short forward of its own
    tokens = Counter()
    handles = [e.register_forward_pre_hook(lambda _, x: tokens.update(n=len(x[0]))) for e in experts.values()]
    for topk in (1, 2):
        tokens.clear()
        with applied(Setting(moe_topk=topk), model, None):
            model.generate(**molmo_batch(), max_new_tokens=3)
        assert tokens["n"] == topk * 4 * (8 + 2)  # 4 blocks, 8 prompt tokens and 2 decode steps
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("value", [16, 48, 64, 272])
def test_vision_tokens_is_an_upper_bound(bundled, batch_under, value):
    tokens = int((batch_under(Setting(vision_tokens=value))["input_ids"] == image_token_id(bundled.model)).sum())
    assert tokens <= value  # a square image cannot be cut into 2 or 3 tiles


def test_an_unknown_knob_lists_the_known_ones(bundled):
    with pytest.raises(
        KnobError,
        match="unknown knob 'depth'; known knobs: vision_tokens, moe_topk, block_skip, image_keep, drop_after",
    ):
        find_knob("depth", bundled.model, bundled.processor)


def test_a_ready_batch_has_no_vision_tokens(bundled):
    with pytest.raises(KnobError, match="a ready batch has its image tokens already"):
        find_knob("vision_tokens", bundled.model, None)


def test_the_space_is_the_product_of_what_the_model_offers(bundled):
    space, absent = find_space(bundled.model, bundled.processor, {})
    assert absent.keys() == {"image_keep", "drop_after"}
    assert "vision_tokens makes fewer image tokens before the vision tower" in absent["image_keep"]
    assert len(space) == 4 * 3 * 3
    assert space.pruned == {}
    assert space.level_indices == tuple(product(range(4), range(3), range(3)))
    assert space.full == Setting(vision_tokens=272, moe_topk=4, block_skip=())
    assert {len(setting) for setting in space.settings} == {3}


def test_asked_values_join_full_and_absent_knobs_give_their_reason():
    space, absent = find_space(molmo_like(), None, {"moe_topk": (1,), "block_skip": None})
    assert space.levels["moe_topk"] == (2, 1)
    assert absent.keys() == {"vision_tokens", "image_keep", "drop_after"}
    with pytest.raises(KnobError, match="moe_topk = 9 is not legal"):
        find_space(molmo_like(), None, {"moe_topk": (9,)})
    with pytest.raises(KnobError, match="a ready batch has its image tokens already"):
        find_space(molmo_like(), None, {"vision_tokens": (16,)})
