"""Which blocks can be skipped, what is offered, and what a skipped block hands on."""

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from chronostat.errors import KnobError
from chronostat.knobs.block_form import BlockForm
from chronostat.knobs.block_limits import BlockLimits
from chronostat.knobs.block_skip import BlockSkip
from chronostat.knobs.cache_keeping import CacheKeepingBlock
from chronostat.knobs.registry import applied, find_knob, find_space
from chronostat.records import Setting
from stand_ins.molmo_like import Block, MolmoLike, molmo_batch, molmo_like


def test_the_first_blocks_of_an_order_are_those_that_can_be_skipped_together():
    assert [BlockSkip(8).first_of([5, 0, 3, 1], count) for count in range(6)] == [
        (),
        (5,),
        (0, 5),
        (0, 3, 5),
        (0, 1, 3, 5),
        (0, 1, 3, 5),  # there is no fifth
    ]
    needs = BlockSkip(4, limits=BlockLimits(sources=frozenset({0, 1}), dependents=frozenset({2})))
    assert needs.first_of([1, 0, 3, 2], 2) == (1, 3)  # block 2 needs block 0 now
    assert needs.first_of([1, 0, 2, 3], 3) == (0, 1, 2)  # without block 2 nothing needs it
    assert needs.first_of([1, 0], 2) == (1,)
    assert needs.offered({"block_order": (1, 0, 3, 2)}) == ((), (1,), (1, 3))


def test_an_order_replaces_the_central_blocks_of_the_default_values():
    knob = BlockSkip(8)
    assert knob.levels == ((), (3, 4), (2, 3, 4, 5))
    assert knob.offered({"block_order": None}) == knob.levels
    assert knob.offered({"block_order": (7, 1, 6, 0, 2, 3, 4, 5)}) == ((), (1, 7), (0, 1, 6, 7))
    assert knob.offered({"block_order": (7, 1, 6)}) == ((), (1, 7), (1, 6, 7))  # no more than what is ordered


@pytest.mark.parametrize("order", [(), (1, 1), (8,), (-1, 0)])
def test_an_order_of_other_blocks_is_refused(order):
    with pytest.raises(KnobError, match=r"knobs.block_order = .* name distinct blocks from 0 to 7, the "):
        BlockSkip(8).offered({"block_order": order})


def test_the_order_of_a_configuration_reaches_the_space():
    space, _ = find_space(molmo_like(), None, {"block_order": (0, 3, 1, 2), "moe_keep_first": False})
    assert space.levels["block_skip"] == ((), (0,), (0, 3))


class NeedsImages(MolmoLike):
    def forward(self, input_ids, images=None, **kwargs):
        return super().forward(input_ids, images.float(), **kwargs)


def test_an_order_is_not_ignored_on_a_model_without_the_knob():
    with pytest.raises(KnobError, match=r"block_skip: cannot see what the blocks of NeedsImages return; .*'float'"):
        find_space(molmo_like(NeedsImages), None, {"block_order": (0,)})


def test_producers_are_refused_by_index_and_left_out_of_what_is_offered():
    knob = BlockSkip(8, limits=BlockLimits(producers=frozenset({3, 4})))
    assert knob.skippable == (0, 1, 2, 5, 6, 7)
    assert knob.levels == ((), (2, 5), (1, 2, 5, 6))
    assert knob.offered({"block_order": (3, 0, 1, 4, 2, 5)}) == ((), (0, 1), (0, 1, 2, 5))
    knob.check((2, 5))
    message = (
        r"block_skip = \(2, 3\) is not legal on this model; legal: a tuple of ascending distinct indices out of "
        r"\[0, 1, 2, 5, 6, 7\]; here later blocks read the keys and values of block 3"
    )
    with pytest.raises(KnobError, match=message):
        knob.check((2, 3))


def test_a_block_that_takes_what_another_made_needs_one_source_before_it():
    limits = BlockLimits(sources=frozenset({0, 1, 4}), dependents=frozenset({2, 3, 5}))
    assert limits.objection((0,)) is None
    assert limits.objection((1, 4)) is None
    assert limits.objection((0, 1)) == "block 2 needs what one of the blocks 0, 1 makes"
    assert limits.objection((0, 1, 2, 3)) is None  # block 5 has block 4
    assert limits.objection((0, 1, 2, 3, 4)) == "block 5 needs what one of the blocks 0, 1, 4 makes"
    assert BlockSkip(6, limits=limits).levels == ((), (2,), (1, 2, 3))


class Biased(Block):
    """Makes a bias if it is one that does, and hands on what it has; a strict one fails without."""

    makes = False
    strict = False

    def forward(self, hidden, bias, layer_past):
        if bias is None and self.strict and not self.makes:
            raise TypeError("no bias")
        bias = hidden.new_full((1,), 0.5) if self.makes else bias
        hidden = super().forward(hidden, layer_past)[0]
        return (hidden if bias is None else hidden + bias), bias


class Shares(Block):
    """Blocks 0 and 1 keep their hidden states where the later ones read them."""

    def forward(self, hidden, shared, layer_past):
        if self.layer_idx < 2:
            shared[self.layer_idx] = hidden
        else:
            hidden = hidden + shared[self.layer_idx % 2]
        return super().forward(hidden, layer_past)


class HandsOn(MolmoLike):
    """Each block is given what the last one returned beside the hidden states, or all of them one dictionary."""

    share = False

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **_):
        parts = self.model.transformer
        past_key_values = DynamicCache() if past_key_values is None else past_key_values
        hidden, handed = parts["wte"](input_ids), {} if self.share else None
        for block in parts["blocks"]:
            hidden, returned = block(hidden, handed, layer_past=past_key_values)
            handed = handed if self.share else returned
        return CausalLMOutputWithPast(logits=self.lm_head(parts["ln_f"](hidden)), past_key_values=past_key_values)


def of_blocks(kind, *, share=False, sources=()):
    model = molmo_like(HandsOn)
    model.share = share
    for index, block in enumerate(model.model.transformer["blocks"]):
        block.__class__ = kind
        block.makes = index in sources
    return model


def test_blocks_that_others_read_are_found_by_what_they_write():
    knob = find_knob("block_skip", of_blocks(Shares, share=True), None)
    assert knob.skippable == (2, 3)
    assert knob.levels == ((), (2,), (2, 3))


def test_a_skipped_block_hands_on_what_it_was_given():
    model = of_blocks(Biased, sources=(0,))
    assert find_knob("block_skip", model, None).skippable == (0, 1, 2, 3)  # without a source there is no bias
    ids = {"input_ids": molmo_batch()["input_ids"]}
    seen = []
    handle = model.model.transformer["blocks"][3].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    with applied(Setting(block_skip=(1, 2)), model, None):
        model(**ids)
    with applied(Setting(block_skip=(0,)), model, None):
        model(**ids)
    handle.remove()
    assert torch.equal(seen[0], torch.tensor([0.5]))
    assert seen[1] is None


def test_a_source_that_others_fail_without_is_refused(monkeypatch):
    monkeypatch.setattr(Biased, "strict", True)
    knob = find_knob("block_skip", of_blocks(Biased, sources=(0, 2)), None)
    knob.check((1,))
    knob.check((0, 1))  # block 3 has block 2
    with pytest.raises(KnobError, match="here block 1 needs what one of the blocks 0 makes"):
        knob.check((0,))


def test_a_stand_in_shows_the_attributes_of_its_block_and_owns_none_of_its_parts():
    block = molmo_like().model.transformer["blocks"][2]
    stand_in = CacheKeepingBlock(block, 2, BlockForm(rest=None))
    assert stand_in.layer_idx == 2
    assert stand_in.qkv is block.qkv
    assert list(stand_in.modules()) == [stand_in]
    assert stand_in.state_dict() == {}
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        stand_in.unknown  # noqa: B018


@pytest.mark.parametrize("axis", [1, 2])
def test_zeros_are_written_for_each_token_wherever_the_token_axis_is(axis):
    block = molmo_like().model.transformer["blocks"][1]
    hidden = torch.ones(2, 3, 16) if axis == 1 else torch.ones(4, 2, 3, 16)  # batch 2, 3 tokens
    cache = DynamicCache()
    stand_in = CacheKeepingBlock(block, 1, BlockForm(rest=None, token_axis=axis))
    assert stand_in(hidden, layer_past=cache) is hidden
    assert cache.layers[1].keys.shape == (2, 1, 3, 1)
    assert cache.get_seq_length(1) == 3
