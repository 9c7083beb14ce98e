"""What the knobs do on every architecture of the zoo: offered ones take work away, absent ones say why."""

from contextlib import contextmanager

import pytest
import torch

from chronostat.errors import KnobError
from chronostat.knobs.registry import applied, find_knob
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.records import Setting
from stand_ins.observing import counted_calls
from zoo.build import build
from zoo.cases import DEEPSTACK, MEASURED, NEW_TOKENS, every
from zoo.reference import left_padded, text_only, without_blocks

WITH_EXPERTS = {
    "deepseek_ocr2",
    "dots3_note",
    "ernie4_5_vl_moe",
    "gemma4",
    "glm5_next",
    "inkling2",
    "inkling_mm_model",
    "minimax_m3_vl",
    "mistral4",
    "mistral_large4",
    "muse_spark",
    "nemotron_h_omni",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl_moe",
    "qwen4_exp",
    "step3p7",
    "unlimited_ocr",
}
OTHER_WITHOUT = {  # blocks whose removal makes another model: what lies between the others goes by their index
    "idefics": {0, 1},  # cross-attention before every other block
    "inkling2": {0, 3},  # every third block keeps its input for later ones
    "mllama": {0},  # a cross-attention block is first then, whose cache is not as long as the text
}
NO_REFERENCE = "can only be called on Attention layers"  # what a model without any attention raises
ONE_ATTENTION = {  # with a single attention block, without which there is no such model
    "glm5_next",
    "lfm3_vl",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "nemotron_h_omni",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
}
COMPARED_IN_FAST_SUITE = {"gemma4_unified", "llava"}


def logits(zoo):
    """[new tokens, 1, vocabulary]."""
    return logits_of(zoo.model, zoo.batch, zoo.options)


def logits_of(model, batch, options):
    torch.manual_seed(0)
    output = model.generate(
        **batch,
        **options,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(output.logits)


def logits_without(zoo, batch, skipped):
    """Of a model that was built without those blocks; None where there is no such model."""
    try:
        return logits_of(without_blocks(zoo.model, skipped), batch, zoo.options)
    except ValueError as error:
        assert NO_REFERENCE in str(error)  # noqa: PT017 - anything else is a fault
        return None


@contextmanager
def experts_per_token(model):
    """The widths of the index tensors ([tokens, experts per token]) that reach the experts of the decoder."""
    seen = set()

    def note(_, args, kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        seen.update(tensor.shape[-1] for tensor in tensors if not tensor.is_floating_point())

    inside = anatomy_of(model).block_list
    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for path, module in model.named_modules()
        if path.startswith(inside) and type(module).__name__.endswith("Experts")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("name", every(MEASURED))
def test_each_block_can_be_skipped(name, warm, tally):
    zoo = warm(name).zoo
    full = logits(zoo)
    find_knob("block_skip", zoo.model, None)
    tally["block_skip"].add(name)
    anatomy = anatomy_of(zoo.model)
    blocks = {path: zoo.model.get_submodule(path) for path in anatomy.blocks}
    for index, path in enumerate(anatomy.blocks):
        with applied(Setting(block_skip=(index,)), zoo.model, None), counted_calls(blocks) as calls:
            result = measure_generate(zoo.model, zoo.batch, max_new_tokens=NEW_TOKENS)
            assert not torch.equal(logits(zoo), full)
        assert result.timing.source == "measured"
        assert set(calls) == set(blocks) - {path}
    assert {path: zoo.model.get_submodule(path) for path in anatomy.blocks} == blocks
    assert torch.equal(logits(zoo), full)


def compared(name):
    return pytest.param(name, id=name, marks=() if name in COMPARED_IN_FAST_SUITE else (pytest.mark.slow,))


@pytest.mark.parametrize("name", [compared(name) for name in MEASURED])
def test_skipping_equals_a_model_built_without_the_blocks(name, warm, tally):
    zoo = warm(name).zoo
    knob = find_knob("block_skip", zoo.model, None)
    request = text_only(zoo.batch) if name in DEEPSTACK else zoo.batch
    paddings = (0, 3) if "input_ids" in request else (0,)
    for skipped in [*((index,) for index in knob.skippable), knob.levels[-1]]:
        if OTHER_WITHOUT.get(name, set()) & set(skipped):
            continue
        for padding in paddings:
            batch = left_padded(request, padding)
            with applied(Setting(block_skip=skipped), zoo.model, None):
                actual = logits_of(zoo.model, batch, zoo.options)
            expected = logits_without(zoo, batch, skipped)
            assert expected is None or torch.equal(actual, expected), (skipped, padding)
    if name not in OTHER_WITHOUT:
        tally["text" if name in DEEPSTACK else "equal"].add(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*DEEPSTACK, *OTHER_WITHOUT, *ONE_ATTENTION}))
@pytest.mark.parametrize("padding", [0, 3])
def test_skipping_with_a_cache_equals_skipping_without_one(name, padding, warm, tally):
    """The reference where no model without the block is one: a block that is passed by, everything computed anew."""
    zoo = warm(name).zoo
    batch = left_padded(zoo.batch, padding)
    options = {**zoo.options, "suppress_tokens": [100, 101, 102, 103]}  # an image that is answered has no pixels
    for index in range(len(anatomy_of(zoo.model).blocks)):
        with applied(Setting(block_skip=(index,)), zoo.model, None):
            cached = logits_of(zoo.model, batch, options)
            anew = logits_of(zoo.model, batch, {**options, "use_cache": False})
        torch.testing.assert_close(cached, anew, rtol=1e-4, atol=2e-5)
    tally["anew"].add(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dots3_note", "gemma4_unified", "inkling_mm_model", "lfm2_vl", "llava", "qwen3_5"])
@pytest.mark.parametrize(
    "way",
    [{"cache_implementation": "static"}, {"num_beams": 2}, {"prefill_chunk_size": 5}],
    ids=lambda way: next(iter(way)),
)
def test_skipping_is_right_in_other_caches_too(name, way, warm):
    zoo = warm(name).zoo
    for skipped in [(0,), (1,)]:
        with applied(Setting(block_skip=skipped), zoo.model, None):
            actual = logits_of(zoo.model, zoo.batch, {**zoo.options, **way})
        assert torch.equal(actual, logits_of(without_blocks(zoo.model, skipped), zoo.batch, {**zoo.options, **way}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified"])
def test_blocks_whose_keys_and_values_others_read_are_refused_by_index(name):
    kinds = ["sliding_attention", "full_attention"] * 3
    zoo = build(name, num_hidden_layers=6, layer_types=kinds, num_kv_shared_layers=2)  # 4 and 5 read what 2 and 3 keep
    full = logits(zoo)
    knob = find_knob("block_skip", zoo.model, None)
    assert knob.skippable == (0, 1, 4, 5)
    assert knob.levels == ((), (1,), (0, 1, 4))
    for skipped in [(0,), (1,), (4,), (5,), (4, 5), (0, 1, 4, 5)]:
        with applied(Setting(block_skip=skipped), zoo.model, None):
            assert not torch.equal(logits(zoo), full)
    with pytest.raises(
        KnobError, match=r"out of \[0, 1, 4, 5\]; here later blocks read the keys and values of block 3"
    ):
        knob.check((0, 3))
    assert torch.equal(logits(zoo), full)


@pytest.mark.parametrize("name", every(sorted(WITH_EXPERTS)))
def test_fewer_experts_run_for_each_token(name, warm, tally):
    zoo = warm(name).zoo
    full = logits(zoo)
    knob = find_knob("moe_topk", zoo.model, None)
    tally["moe_topk"].add(name)
    assert len(knob.levels) > 1
    for topk in knob.levels[1:]:
        with applied(Setting(moe_topk=topk), zoo.model, None), experts_per_token(zoo.model) as seen:
            assert not torch.equal(logits(zoo), full)
        assert seen == {topk}
    assert torch.equal(logits(zoo), full)


def test_each_block_can_have_its_own_number_of_experts(warm):
    zoo = warm("qwen3_vl_moe").zoo
    full = logits(zoo)
    seen = {}
    for value in [(2, 1, 1, 1), (1, 1, 1, 2)]:
        with applied(Setting(moe_topk=value), zoo.model, None), experts_per_token(zoo.model) as widths:
            seen[value] = logits(zoo)
        assert widths == {1, 2}
    assert not torch.equal(*seen.values())
    assert torch.equal(logits(zoo), full)


@pytest.mark.slow
def test_experts_that_all_run_have_nothing_to_choose(warm):
    with pytest.raises(
        KnobError, match="moe_topk: Llama4ForConditionalGeneration runs 4 experts for each token whatever"
    ):
        find_knob("moe_topk", warm("llama4").zoo.model, None)


@pytest.mark.parametrize("name", every(name for name in MEASURED if name not in {*WITH_EXPERTS, "llama4"}))
def test_dense_models_have_no_experts_to_choose(name, warm):
    with pytest.raises(KnobError, match="has no router with an integer top_k, it is a dense model"):
        find_knob("moe_topk", warm(name).zoo.model, None)
