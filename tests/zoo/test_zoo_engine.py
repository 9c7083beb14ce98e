"""Which architectures the graph engine replays, and that each one's answer is that of an eager call."""

import pytest
import torch

from chronostat.engine import graphed, why_eager
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
