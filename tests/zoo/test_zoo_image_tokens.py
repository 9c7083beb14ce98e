"""Knobs on image tokens on every architecture of the zoo: offered ones take tokens away, absent ones say why."""

import inspect
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from chronostat.errors import KnobError
from chronostat.knobs.registry import applied, find_knob
from chronostat.measure.generate import measure_generate
from chronostat.measure.work import counted_work
from chronostat.models.anatomy import anatomy_of
from chronostat.models.prepare import image_places
from chronostat.records import Setting
from chronostat.tokens.methods.attention import Attention
from chronostat.tokens.pictures import output_pictures
from chronostat.tokens.towers import heard_block, tower_of
from zoo.cases import DEEPSTACK, MEASURED, NEW_TOKENS, every

NO_PLACES = {  # no placeholders of images in the prompt
    "blip": "names no image placeholder",
    "evolla": "names no image placeholder",
    "git": "names no image placeholder",
    "idefics": "names no image placeholder",
    "instructblipvideo": "names no image placeholder",
    "mistral4": "names no image placeholder",
    "mllama": "has no get_image_features",
    "pix2struct": "names no image placeholder",
    "pp_formulanet": "names no image placeholder",
    "udop": "names no image placeholder",
    "vision-encoder-decoder": "names no image placeholder",
}
IN_WINDOWS = "attends in windows and does not say"
MIXING = "attends, so that a feature is made of more than a square of patches"
NO_BLOCKS = "has no vision tower with blocks that attend"
NOT_HEARD = "no attention was heard"
NO_SQUARES = "which are no squares of them"
TILES = r"attends over \d pictures, and the features are of 1"
NO_ATTENTION = {  # whose tower's attention does not say which features count
    "chameleon": NOT_HEARD,
    "deepseek_ocr2": NO_SQUARES,
    "emu3": NOT_HEARD,
    "fast_vlm": NO_BLOCKS,
    "gemma4_unified": NO_BLOCKS,
    "got_ocr2": IN_WINDOWS,
    "granite4_vision": MIXING,
    "hunyuan_vl": NO_SQUARES,
    "idefics2": MIXING,
    "inkling_mm_model": NO_BLOCKS,
    "instructblip": MIXING,
    "kosmos-2": MIXING,
    "kosmos-2.5": MIXING,
    "llama4": "does not say whether that comes before its patches or after them",
    "llava_next": TILES,
    "llava_next_video": TILES,
    "muse_glimmer": IN_WINDOWS,
    "muse_spark": IN_WINDOWS,
    "pp_chart2table": IN_WINDOWS,
    "unlimited_ocr": NO_SQUARES,
}
OTHER_CACHES = "a sliding window, linear attention or the like"
DEEP = "adds image features after several of its blocks"
STAYS = {  # where image tokens cannot leave between the blocks
    **dict.fromkeys(NO_PLACES, "names no image placeholder in its configuration"),
    **dict.fromkeys(("pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), "to an encoder"),
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), "names no image placeholder in its configuration"),
    **dict.fromkeys(
        (
            "aya_vision",
            "cohere2_vision",
            "dots3_note",
            "exaone4_5",
            "gemma4",
            "gemma4_unified",
            "glm5_next",
            "idefics2",
            "inkling2",
            "inkling_mm_model",
            "lfm2_vl",
            "lfm3_vl",
            "llama4",
            "minicpm_ocr",
            "minicpmv4_6",
            "minicpmv4_7",
            "mistral_large4",
            "muse_glimmer",
            "muse_spark",
            "nemotron_h_omni",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen4_exp",
            "step3p7",
            "unlimited_ocr",
        ),
        OTHER_CACHES,
    ),
    **dict.fromkeys(DEEPSTACK, DEEP),
    "instructblip": "generates with a language model inside it",
    "mllama": "reads its image by cross-attention",
}


def logits(zoo):
    """[new tokens, 1, vocabulary]."""
    torch.manual_seed(0)
    output = zoo.model.generate(
        **zoo.batch,
        **zoo.options,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(output.logits)


@pytest.mark.parametrize("name", every(name for name in MEASURED if name not in NO_PLACES))
def test_fewer_image_tokens_enter(name, warm, tally):
    zoo = warm(name).zoo
    knob = find_knob("image_keep", zoo.model, None)
    made = int(image_places(zoo.model, zoo.batch).sum())
    full, encoder_decoder = logits(zoo), zoo.model.config.is_encoder_decoder
    tally["image_keep"].add(name)
    for method in ("pool", "stride", "norm", "attention", "prompt"):
        setting = Setting(image_keep=f"{method}:0.5")
        if method == "attention" and name in NO_ATTENTION:
            with pytest.raises(KnobError, match=NO_ATTENTION[name]), applied(setting, zoo.model, None):
                logits(zoo)
            continue
        with counted_work(zoo.model) as works, applied(setting, zoo.model, None):
            result = measure_generate(zoo.model, zoo.batch, max_new_tokens=NEW_TOKENS)
            assert encoder_decoder or not torch.equal(logits(zoo), full)
        assert works[0].image_tokens == knob.reads(setting["image_keep"], made) == made // 2
        assert result.timing.source == "measured"
        assert len(result.output_ids) == NEW_TOKENS
    assert torch.equal(logits(zoo), full)


def patches_by_gradient(zoo):
    """For each feature the tokens of the block that is heard without which it would be another, of all pictures."""
    model, given = zoo.model, []

    def begin_here(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        given.append(hidden.detach().requires_grad_())
        return (given[0], *output[1:]) if isinstance(output, tuple) else given[0]

    encode = next(module for module in reversed(list(model.modules())) if hasattr(module, "get_image_features"))
    names = inspect.signature(encode.get_image_features).parameters
    hook = heard_block(model, tower_of(model)).register_forward_hook(begin_here, prepend=True)
    output = encode.get_image_features(**{key: zoo.batch[key] for key in names if key in zoo.batch}, return_dict=True)
    hook.remove()
    features = torch.cat(output_pictures(output, int(image_places(model, zoo.batch).sum())))
    slopes = [torch.autograd.grad(feature.square().sum(), given, retain_graph=True)[0] for feature in features]
    return [set(slope.flatten(0, -2).abs().sum(dim=-1).nonzero()[:, 0].tolist()) for slope in slopes]


@pytest.mark.parametrize("name", every(name for name in MEASURED if name not in {*NO_PLACES, *NO_ATTENTION}))
def test_attention_is_added_over_the_patches_that_a_feature_is_made_of(name, warm, monkeypatch):
    zoo, added = warm(name).zoo, []
    patches_of = Attention._patches

    def noted(self, picture):
        patches = patches_of(self, picture)
        before = sum(self._heard.pictures[: picture.index])
        added.extend(set(row) for row in (patches + before).tolist())
        return patches

    monkeypatch.setattr(Attention, "_patches", noted)
    with applied(Setting(image_keep="attention:0.5"), zoo.model, None):
        logits(zoo)
    if name == "step3p7":  # convolutions that overlap: a feature is made of its square and of what lies around it
        assert all(square <= seen for square, seen in zip(added, patches_by_gradient(zoo), strict=True))
    else:
        assert added == patches_by_gradient(zoo)


@pytest.mark.parametrize("name", every(sorted(NO_PLACES)))
def test_where_images_take_no_places_none_can_be_left_out(name, warm):
    with pytest.raises(KnobError, match=f"image_keep: .*{NO_PLACES[name]}"):
        find_knob("image_keep", warm(name).zoo.model, None)


@contextmanager
def unseen_in_later_blocks(zoo, after, gone=None):
    """All tokens run in all blocks, and after some of them none attends to some: the image's if absent."""
    model = zoo.model
    gone = image_places(model, zoo.batch)[0].nonzero()[:, 0] if gone is None else gone
    blocks = model.get_submodule(anatomy_of(model).block_list)
    never = torch.finfo(model.dtype).min
    length = 0

    def mask(index, block, args, kwargs):
        nonlocal length
        named = dict(zip(inspect.signature(block.forward).parameters, args, strict=False)) | kwargs
        queries = named["hidden_states"].shape[1]
        if index == 0:
            length = queries if queries > 1 else length + 1
        if index < after:
            return None
        given = named.get("attention_mask")
        if given is None:
            seen = torch.ones(queries, length).tril(length - queries)[None, None].bool()
        else:
            seen = given if given.dtype == torch.bool else given == 0
        hidden = torch.zeros(seen.shape).masked_fill(~seen, never)
        hidden[..., gone] = never
        if queries > 1:
            hidden[..., gone, gone] = 0  # what nobody reads has to attend to something
        return (), {**named, "attention_mask": hidden}

    hooks = [
        block.register_forward_pre_hook(partial(mask, index), with_kwargs=True) for index, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", every(name for name in MEASURED if name not in STAYS))
def test_tokens_that_leave_are_as_if_nobody_saw_them(name, warm, tally):
    zoo = warm(name).zoo
    full = logits(zoo)
    find_knob("drop_after", zoo.model, None)
    tally["drop_after"].add(name)
    for after in (1, 3):
        with unseen_in_later_blocks(zoo, after):
            expected = logits(zoo)
        with applied(Setting(drop_after=after), zoo.model, None):
            actual = logits(zoo)
            assert measure_generate(zoo.model, zoo.batch, max_new_tokens=2).timing.source == "measured"
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(actual, full, atol=1e-3)
    with applied(Setting(drop_after="1:0.5"), zoo.model, None):
        assert not torch.allclose(logits(zoo), full, atol=1e-4)
    assert torch.equal(logits(zoo), full)


@pytest.mark.parametrize("name", every(sorted(STAYS)))
def test_where_tokens_cannot_leave_it_is_refused(name, warm):
    with pytest.raises(KnobError, match=f"drop_after: .*{STAYS[name]}"):
        find_knob("drop_after", warm(name).zoo.model, None)
