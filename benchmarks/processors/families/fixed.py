"""Which families scale images to one size? Each gives the same number of tokens, and no other can be asked for."""

from benchmarks.processors.families.grids import CLIP_336, llava
from benchmarks.processors.families.recipe import TOWER, Recipe, image_processor

LLAVA = llava("Llava", image_processor("CLIPImageProcessor", **CLIP_336), [])
PALIGEMMA = Recipe(
    processor="PaliGemmaProcessor",
    model="PaliGemmaForConditionalGeneration",
    image=image_processor("SiglipImageProcessor", image_seq_length=256),
    named={"image_token": "<image>"},
    picture="<image>",
    config=lambda ids: {
        "text_config": {"model_type": "gemma", "head_dim": 8},
        "vision_config": {**TOWER, "image_size": 224, "patch_size": 14, "vision_use_head": False},
        "image_token_index": ids("<image>"),
        "projection_dim": 32,
    },
)
