"""Which kinds of processor are there? Real ones of many families, made offline, each with a thin random model.

The image processors and processors are the library's own classes in their own default sizes, or those of a published
checkpoint where the entry says so. Only the tokenizers are small, of one word for every special token, and the models:
their vision towers have the real image and patch sizes, so that shapes and numbers of tokens are real, but two or three
layers of width 32.

There is one module for each way in which processors bring an image to their size; ``recipe`` is what they share.
"""

from benchmarks.processors.families.areas import GEMMA4, GLM4V, MISTRAL3, MUSE, PIXTRAL, QWEN2, QWEN3, QWEN25
from benchmarks.processors.families.fixed import LLAVA, PALIGEMMA
from benchmarks.processors.families.grids import LLAVA_NEXT, MLLAMA, ONEVISION
from benchmarks.processors.families.recipe import Family, Pair
from benchmarks.processors.families.tiles import AYA, GEMMA3, GOT, IDEFICS3, INTERNVL, LFM2, LLAMA4, MOLMO2, smolvlm

FAMILIES: dict[str, Family] = {
    each.name: each
    for each in (
        Family(name="Qwen2-VL", build=QWEN2),
        Family(name="Qwen2.5-VL (published areas)", build=QWEN25),
        Family(name="Qwen3-VL (published areas)", build=QWEN3),
        Family(name="GLM-4V", build=GLM4V),
        Family(name="InternVL (448 px)", build=INTERNVL),
        Family(name="GOT-OCR (1024 px)", build=GOT, only_more=True),
        Family(name="Aya Vision (364 px)", build=AYA),
        Family(name="Llama 4", build=LLAMA4),
        Family(name="Muse Glimmer", build=MUSE),
        Family(name="SmolVLM (512 px squares)", build=smolvlm),
        Family(name="Idefics 3", build=IDEFICS3),
        Family(name="LLaVA-NeXT (336 px)", build=LLAVA_NEXT),
        Family(name="LLaVA-OneVision", build=ONEVISION),
        Family(name="Gemma 3", build=GEMMA3, only_more=True),
        Family(name="Gemma 4", build=GEMMA4),
        Family(name="Pixtral", build=PIXTRAL),
        Family(name="Mistral 3 (published size)", build=MISTRAL3),
        Family(name="LFM2-VL", build=LFM2),
        Family(name="Molmo2", build=MOLMO2),
        Family(name="Mllama", build=MLLAMA, shape_free=True),
        Family(name="LLaVA 1.5 (336 px)", build=LLAVA, refused=True),
        Family(name="PaliGemma", build=PALIGEMMA, refused=True),
    )
}

__all__ = ["FAMILIES", "Family", "Pair"]
