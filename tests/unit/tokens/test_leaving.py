"""Image tokens that leave between two decoder blocks: what stays, where it is refused, and that it is undone."""

import pytest
import torch
from torch import nn

from chronostat.engine import graphed
from chronostat.errors import KnobError
from chronostat.knobs.drop_after import DropAfter
from chronostat.knobs.registry import applied, find_knob, find_space
from chronostat.measure.work import counted_work
from chronostat.records import Setting
from chronostat.tokens.leaving import _cut
from stand_ins.observing import Snapshot
from zoo.build import build
from zoo.test_zoo_image_tokens import unseen_in_later_blocks

ANSWER = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def logits_of(zoo):
    made = zoo.model.generate(**zoo.batch, **ANSWER, return_dict_in_generate=True, output_logits=True)
    return torch.stack(made.logits)


@torch.no_grad()
def attended_by_the_last_token(zoo, block):
    """Which two of the image tokens it attends to most, from the weights that the slow attention hands out."""
    eager = build("llava").model
    eager.set_attn_implementation("eager")
    weights = eager(**zoo.batch, output_attentions=True).attentions[block]  # [1, heads, T, T]
    images = (zoo.batch["input_ids"][0] == 100).nonzero()[:, 0]
    received = weights[0, :, -1, images].mean(dim=0)
    return images[received.argsort(descending=True)]


@pytest.mark.parametrize("after", [1, 2])
def test_what_stays_is_what_the_last_token_attends_to_most(after):
    zoo = build("llava")
    order = attended_by_the_last_token(zoo, after - 1)
    with unseen_in_later_blocks(zoo, after, gone=order[2:]):
        expected = logits_of(zoo)
    with applied(Setting(drop_after=f"{after}:0.5"), zoo.model, None):
        torch.testing.assert_close(logits_of(zoo), expected, rtol=1e-4, atol=1e-5)


def test_later_blocks_compute_and_keep_fewer_tokens():
    zoo = build("llava")
    find_knob("drop_after", zoo.model, None)  # looks at the blocks once, with a short forward of its own
    seen = {}

    def note(index):
        def first_length(_, args, kwargs, output):
            seen.setdefault(index, (*args, *kwargs.values())[0].shape[1])

        return first_length

    blocks = zoo.model.model.language_model.layers
    hooks = [block.register_forward_hook(note(index), with_kwargs=True) for index, block in enumerate(blocks)]
    with applied(Setting(drop_after=3), zoo.model, None), counted_work(zoo.model) as works:
        made = zoo.model.generate(**zoo.batch, **ANSWER, return_dict_in_generate=True)
    for hook in hooks:
        hook.remove()
    assert seen == {0: 12, 1: 12, 2: 12, 3: 8}
    cached = [layer.keys.shape[2] for layer in made.past_key_values.layers]
    assert cached == [15, 15, 15, 11]  # of the last of four new tokens nothing is kept
    with counted_work(zoo.model) as whole:
        zoo.model.generate(**zoo.batch, **ANSWER)
    assert works[0].prefill_inputs < whole[0].prefill_inputs


@pytest.mark.parametrize("value", [1, "2:0.25"])
def test_the_model_is_as_it_was_afterwards(value, monkeypatch):
    zoo = build("llava")
    full = logits_of(zoo)
    before = Snapshot(zoo.model)
    with applied(Setting(drop_after=value), zoo.model, None):
        assert not torch.equal(logits_of(zoo), full)
    before.assert_equals(zoo.model)

    def fail(_):
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(zoo.model.lm_head, "forward", fail)
        with pytest.raises(RuntimeError), applied(Setting(drop_after=value), zoo.model, None):
            logits_of(zoo)
    before.assert_equals(zoo.model)
    assert torch.equal(logits_of(zoo), full)


def test_a_block_in_which_no_attention_is_heard_is_refused(monkeypatch):
    zoo = build("llava")
    monkeypatch.setattr("chronostat.tokens.listening._FUSED", None)
    with (
        applied(Setting(drop_after="1:0.5"), zoo.model, None),
        pytest.raises(KnobError, match="no attention was heard in LlamaDecoderLayer"),
    ):
        zoo.model.generate(**zoo.batch, **ANSWER)


def test_it_goes_together_with_fewer_tokens_and_skipped_blocks_in_any_order():
    zoo = build("llava")
    values = {"image_keep": "stride:2", "drop_after": "2:0.5", "block_skip": (3,)}
    seen = []
    for names in (("image_keep", "drop_after", "block_skip"), ("block_skip", "drop_after", "image_keep")):
        with applied(Setting({name: values[name] for name in names}), zoo.model, None):
            seen.append(logits_of(zoo))
    assert torch.equal(*seen)


def test_graphs_are_refused_by_name():
    zoo = build("llava")
    with (
        graphed(zoo.model),
        pytest.raises(KnobError, match="drop_after = 2: graphs hold one number of tokens for all blocks; use the engi"),
        applied(Setting(drop_after=2), zoo.model, None),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cache_implementation": "static"}, "a cache of StaticLayer"),
        ({"use_cache": False}, "a cache of NoneType"),
        ({"prefill_chunk_size": 5}, "a forward of 5 tokens after the first one"),
    ],
)
def test_other_calls_are_refused_by_name(options, reason):
    zoo = build("llava")
    with pytest.raises(KnobError, match=f"drop_after: {reason}"), applied(Setting(drop_after=2), zoo.model, None):
        zoo.model.generate(**zoo.batch, **ANSWER, **options)


@pytest.mark.parametrize(("knob", "value"), [("drop_after", 1), ("image_keep", "pool:1")])
def test_a_prompt_that_goes_on_from_an_earlier_call_is_refused(knob, value):
    zoo = build("llava")
    begun = zoo.model.generate(input_ids=torch.tensor([[1, 5, 6]]), **ANSWER, return_dict_in_generate=True)
    ids = torch.cat([begun.sequences, zoo.batch["input_ids"]], dim=1)
    batch = {**zoo.batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with (
        applied(Setting({knob: value}), zoo.model, None),
        pytest.raises(KnobError, match=f"{knob}: past_key_values holds .*tokens of an earlier call; leave it out"),
    ):
        zoo.model.generate(**batch, past_key_values=begun.past_key_values, **ANSWER)


@pytest.mark.parametrize(("knob", "value"), [("drop_after", 1), ("image_keep", "pool:1")])
def test_a_prompt_without_ids_is_refused(knob, value):
    zoo = build("llava")
    embeddings = zoo.model.get_input_embeddings()(zoo.batch["input_ids"]).detach()
    with (
        applied(Setting({knob: value}), zoo.model, None),
        pytest.raises(
            KnobError, match=f"{knob}: the prompt is inputs_embeds, of which it is not known which are of im"
        ),
    ):
        zoo.model.generate(inputs_embeds=embeddings, pixel_values=zoo.batch["pixel_values"], **ANSWER)


def test_the_next_prompt_is_another_one_however_short():
    zoo = build("llava")
    with applied(Setting(drop_after=1), zoo.model, None):
        zoo.model.generate(**zoo.batch, **ANSWER)
        hooks = [len(block._forward_pre_hooks) for block in zoo.model.model.language_model.layers]
        zoo.model.generate(input_ids=torch.tensor([[5]]), **ANSWER)
        after = [len(block._forward_pre_hooks) for block in zoo.model.model.language_model.layers]
    assert [before - now for before, now in zip(hooks, after, strict=True)] == [0, 1, 1, 1]


def test_masks_of_every_shape_are_cut():
    """Of a prompt of four tokens the second leaves; two more have come since."""
    columns, block = torch.tensor([0, 2, 3]), nn.Identity()
    mask = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert _cut("attention_mask", mask, 4, columns, block).tolist() == [[1, 3, 4, 5, 6]]
    square = torch.arange(16).view(1, 1, 4, 4)
    assert _cut("attention_mask", square, 4, columns, block)[0, 0].tolist() == [[0, 2, 3], [8, 10, 11], [12, 14, 15]]
    assert _cut("position_ids", mask[:, :4].expand(3, 1, 4), 4, columns, block).shape == (3, 1, 3)
    with pytest.raises(KnobError, match=r"Identity is given weights of shape \[4, 4\], of which it is not known which"):
        _cut("weights", torch.zeros(4, 4), 4, columns, block)


def test_a_refusal_gives_an_example_that_is_legal():
    knob = DropAfter(2)
    with pytest.raises(KnobError, match="legal: 1 to 2 blocks, or fewer than 2 and the share") as refusal:
        knob.check("2:0.5")
    knob.check(str(refusal.value).rpartition("such as ")[2])


def test_it_is_offered_only_where_it_is_asked_for():
    zoo = build("llava")
    space, absent = find_space(zoo.model, None, {})
    assert "drop_after" not in space.levels
    assert absent["drop_after"] == "drop_after: runs eagerly alone; knobs.drop_after offers it"
    space, _ = find_space(zoo.model, None, {"drop_after": (2, "1:0.5"), "block_skip": ((0,),)})
    assert space.levels["drop_after"] == (4, 2, "1:0.5")
    assert any(
        "block 0, whose attention says which image tokens stay, is skipped" in why for why in space.pruned.values()
    )


def test_text_alone_is_left_as_it_is():
    zoo = build("llava")
    ids = torch.tensor([[1, 5, 6, 30, 31]])
    plain = zoo.model.generate(input_ids=ids, **ANSWER)
    with applied(Setting(drop_after=1), zoo.model, None):
        assert torch.equal(zoo.model.generate(input_ids=ids, **ANSWER), plain)


def test_a_model_without_placeholders_is_refused():
    with pytest.raises(KnobError, match="drop_after: BlipForConditionalGeneration names no image placeholder"):
        find_knob("drop_after", build("blip").model, None)
