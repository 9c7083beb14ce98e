"""What the knobs do on every architecture of the zoo: offered ones take work away, absent ones say why."""

from contextlib import contextmanager

import pytest
import torch

from chronostat.errors import KnobError
from chronostat.knobs import applied, find_knob
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.records import Setting
from stand_ins.observing import counted_calls
from zoo.cases import MEASURED, NEW_TOKENS, architecture

WITH_EXPERTS = {
    "deepseek_ocr2",
    "dots3_note",
    "ernie4_5_vl_moe",
    "glm5_next",
    "inkling2",
    "inkling_mm_model",
    "llama4",
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
ANOTHER_STATE = "which keep another state"
ENCODER_DECODER = "is an encoder-decoder, whose blocks cannot be skipped"
NEEDS_AN_IMAGE = "its forward of two text tokens fails"
NOT_SKIPPABLE = {
    "blip": NEEDS_AN_IMAGE,
    "dots3_note": ANOTHER_STATE,
    "glm5_next": ANOTHER_STATE,
    "idefics": NEEDS_AN_IMAGE,
    "inkling2": ANOTHER_STATE,
    "inkling_mm_model": ANOTHER_STATE,
    "instructblip": NEEDS_AN_IMAGE,
    "instructblipvideo": NEEDS_AN_IMAGE,
    "kosmos-2": NEEDS_AN_IMAGE,
    "lfm2_vl": ANOTHER_STATE,
    "lfm3_vl": ANOTHER_STATE,
    "minicpm_ocr": ANOTHER_STATE,
    "minicpmv4_6": ANOTHER_STATE,
    "minicpmv4_7": ANOTHER_STATE,
    "mistral_large4": ANOTHER_STATE,
    "nemotron_h_omni": ANOTHER_STATE,
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "qwen3_5": ANOTHER_STATE,
    "qwen3_5_moe": ANOTHER_STATE,
    "qwen4_exp": ANOTHER_STATE,
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
    "unlimited_ocr": ANOTHER_STATE,
    "vision-encoder-decoder": ENCODER_DECODER,
}


def logits(zoo):
    """[new tokens, 1, vocabulary]."""
    torch.manual_seed(0)
    output = zoo.model.generate(
        **zoo.batch, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return torch.stack(output.logits)


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


@pytest.mark.parametrize("name", [architecture(name) for name in MEASURED if name not in NOT_SKIPPABLE])
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


@pytest.mark.parametrize(("name", "reason"), [architecture(name, why) for name, why in NOT_SKIPPABLE.items()])
def test_blocks_that_cannot_be_skipped_say_why(name, reason, warm):
    with pytest.raises(KnobError, match=f"^block_skip: .*{reason}"):
        find_knob("block_skip", warm(name).zoo.model, None)


@pytest.mark.parametrize("name", [architecture(name) for name in sorted(WITH_EXPERTS)])
def test_fewer_experts_run_for_each_token(name, warm, tally):
    zoo = warm(name).zoo
    full = logits(zoo)
    knob = find_knob("moe_topk", zoo.model, None)
    tally["moe_topk"].add(name)
    for topk in knob.levels[1:]:
        with applied(Setting(moe_topk=topk), zoo.model, None), experts_per_token(zoo.model) as seen:
            assert not torch.equal(logits(zoo), full)
        assert seen == {topk}
    assert torch.equal(logits(zoo), full)


@pytest.mark.parametrize("name", [architecture(name) for name in MEASURED if name not in WITH_EXPERTS])
def test_dense_models_have_no_experts_to_choose(name, warm):
    with pytest.raises(KnobError, match="has no router with an integer top_k, it is a dense model"):
        find_knob("moe_topk", warm(name).zoo.model, None)
