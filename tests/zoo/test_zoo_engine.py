"""Which architectures the graph engine replays, and that each one's answer is that of an eager call."""

import pytest
import torch

from chronostat.engine import graphed, why_eager
from chronostat.measure.clock import FakeClock
from chronostat.models.anatomy import anatomy_of
from stand_ins.capturing import Blind
from zoo.cases import MEASURED, NEW_TOKENS, every

OTHER_CACHES = "layers of its cache are a "
EAGER = {  # the whole answer; with the first words of the reason
    "aya_vision": OTHER_CACHES,
    "blip": "BlipTextEncoder takes no inputs_embeds and past_key_values",
    "cohere2_vision": OTHER_CACHES,
    "cohere_compass": OTHER_CACHES,
    "dots3_note": OTHER_CACHES,
    "evolla": "no cache is used",
    "exaone4_5": OTHER_CACHES,
    "gemma4": OTHER_CACHES,
    "gemma4_unified": OTHER_CACHES,
    "git": "GitEncoder takes no inputs_embeds and past_key_values",
    "glm5_next": OTHER_CACHES,
    "idefics": "its decoder returns image_hidden_states as well",
    "idefics2": OTHER_CACHES,
    "inkling2": "its decoder attends by 'eager'; load it with attn_implementation='sdpa'",
    "inkling_mm_model": OTHER_CACHES,
    "lfm2_vl": OTHER_CACHES,
    "lfm3_vl": OTHER_CACHES,
    "llama4": OTHER_CACHES,
    "minicpm_ocr": OTHER_CACHES,
    "minicpmv4_6": OTHER_CACHES,
    "minicpmv4_7": OTHER_CACHES,
    "mistral_large4": OTHER_CACHES,
    "mllama": "some of its blocks attend to the image, whose keys are not counted in tokens",
    "muse_glimmer": OTHER_CACHES,
    "muse_spark": OTHER_CACHES,
    "nemotron_h_omni": OTHER_CACHES,
    "pix2struct": "an encoder-decoder keeps two caches",
    "pp_formulanet": "an encoder-decoder keeps two caches",
    "qwen3_5": OTHER_CACHES,
    "qwen3_5_moe": OTHER_CACHES,
    "qwen4_exp": OTHER_CACHES,
    "step3p7": OTHER_CACHES,
    "t5gemma2": "an encoder-decoder keeps two caches",
    "udop": "an encoder-decoder keeps two caches",
    "unlimited_ocr": OTHER_CACHES,
    "vision-encoder-decoder": "an encoder-decoder keeps two caches",
}
PREFILL_EAGER = {  # features of the image go into several blocks
    "chameleon",
    "cosmos3_omni",
    "granite4_vision",
    "granite_docling",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
}
DECODE_EAGER = {"kosmos-2"}  # it reads the size of the mask
PROJECTOR_INSIDE, HOST = "lies inside, and has a time of its own", "asks the host"
TOWERS = {  # of models that are not refused; why the first one runs eagerly, None: it is captured
    "chameleon": "it lies inside the module that holds the decoder blocks",
    "cosmos3_edge": HOST,
    "cosmos3_omni": PROJECTOR_INSIDE,
    "deepseek_ocr2": HOST,
    "deepseek_vl": None,
    "ernie4_5_vl_moe": HOST,
    "fast_vlm": None,
    "glm46v": PROJECTOR_INSIDE,
    "glm4v": PROJECTOR_INSIDE,
    "glm_ocr": PROJECTOR_INSIDE,
    "glmga": PROJECTOR_INSIDE,
    "got_ocr2": None,
    "granite4_vision": None,
    "granite_docling": PROJECTOR_INSIDE,
    "hunyuan_vl": PROJECTOR_INSIDE,
    "hyperclovax_vision_v2": HOST,
    "idefics": "it lies inside the module that holds the decoder blocks",
    "instructblip": None,
    "instructblipvideo": None,
    "janus": None,
    "kosmos-2": None,
    "kosmos-2.5": None,
    "lighton_ocr": HOST,
    "llava": None,
    "llava_next": None,
    "llava_next_video": None,
    "minimax_m3_vl": HOST,
    "molmo2": None,
    "ovis2": None,
    "paddleocr_vl": HOST,
    "perception_lm": None,
    "pp_chart2table": None,
    "qianfan_ocr": None,
    "qwen2_5_omni_thinker": PROJECTOR_INSIDE,
    "qwen2_vl": PROJECTOR_INSIDE,
    "qwen3_omni_moe_thinker": PROJECTOR_INSIDE,
    "qwen3_vl": PROJECTOR_INSIDE,
    "qwen3_vl_moe": PROJECTOR_INSIDE,
    "smolvlm": HOST,
    "video_llama_3": HOST,
    "video_llava": None,
    "vipllava": None,
}


@pytest.mark.parametrize("name", every(MEASURED))
def test_what_is_replayed_and_that_answers_are_the_same(name, warm):
    zoo, plain = warm(name)
    reason = why_eager(zoo.model)
    if reason is not None:
        assert reason.startswith(EAGER[name])
        return
    with graphed(zoo.model) as engine:
        for _ in range(2):
            torch.manual_seed(0)
            output = zoo.model.generate(**zoo.batch, **zoo.options, max_new_tokens=NEW_TOKENS, do_sample=False)
            assert torch.equal(getattr(output, "sequences", output), plain)
        ran = engine.last
    if name in EAGER:
        assert (ran.way, ran.reason.startswith(EAGER[name])) == ("eager", True)
        return
    assert ran.captured == 0
    assert ran.prefill == ("eager" if name in PREFILL_EAGER else "graph")
    assert ran.decode == ("eager" if name in DECODE_EAGER else "graph")


@pytest.mark.parametrize("name", every(TOWERS))
def test_which_towers_can_be_captured_by_their_structure(name, warm):
    """On a CPU, where it is refused that a replay asks the host; what CUDA makes of it is found out there."""
    zoo, plain = warm(name)
    with graphed(zoo.model, capturing=Blind(zoo.model, FakeClock())) as engine:
        for _ in range(2):
            torch.manual_seed(0)
            output = zoo.model.generate(**zoo.batch, **zoo.options, max_new_tokens=NEW_TOKENS, do_sample=False)
            assert torch.equal(getattr(output, "sequences", output), plain)
    reason, expected = engine.last.encoded.eager[anatomy_of(zoo.model).vision[0]], TOWERS[name]
    assert reason == expected if expected is None else expected in reason
