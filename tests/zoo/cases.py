"""Which architectures the tests of the zoo run on, and which of them in the fast suite."""

import pytest

from zoo.build import expectations

PARTS = expectations().parts
REFUSED = {"diffusion_gemma"}  # block diffusion: neither a prefill nor decode steps
MEASURED = sorted(set(PARTS) - REFUSED)
FAST = {  # one of each kind; the others are slow
    "blip",  # the image enters by cross-attention; own generate()
    "chameleon",  # vision through a plain method
    "diffusion_gemma",
    "gemma4_unified",  # no vision tower
    "git",  # image encoded inside the forward
    "granite4_vision",  # lists of projectors
    "instructblip",  # the outer forward is never called
    "llava",
    "mistral4",  # no image
    "qwen3_vl_moe",  # projectors inside the tower; routers
    "t5gemma2",  # encoder-decoder
    "vision-encoder-decoder",
}
NEW_TOKENS = 4
DEEPSTACK = {  # features of the image are added after blocks of certain indices; they stay where a block is skipped
    "cohere_compass",
    "cosmos3_omni",
    "granite4_vision",
    "granite_docling",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
}


def architecture(name, *more, part=None):
    marks = () if name in FAST else (pytest.mark.slow,)
    return pytest.param(name, *more, marks=marks, id=name if part is None else f"{name}-{part}")


def every(names=PARTS):
    return [architecture(name) for name in names]
