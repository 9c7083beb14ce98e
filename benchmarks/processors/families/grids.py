"""Which families cut images into tiles along a grid? One that the model was built for, as its configuration says."""

from collections.abc import Callable
from typing import Any

from benchmarks.processors.families.recipe import TOWER, Recipe, image_processor

CLIP_336: dict[str, Any] = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
}
NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


def llava(kind: str, image: Callable[[], Any], pinpoints: list[list[int]]) -> Recipe:
    """LLaVA with a CLIP tower of 336 px.

    Args:
        kind: the beginning of the names of its classes.
        image: makes the image processor.
        pinpoints: height and width in pixels of the grids that the model knows; none: it knows no grids.
    """
    return Recipe(
        processor=f"{kind}Processor",
        model=f"{kind}ForConditionalGeneration",
        image=image,
        named={"image_token": "<image>"},
        picture="<image>",
        options={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        config=lambda ids: {
            "text_config": {"model_type": "llama", "head_dim": 8},
            "vision_config": {
                **TOWER,
                "model_type": "clip_vision_model",
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 32,
            },
            "image_token_index": ids("<image>"),
            "image_seq_length": 576,
            "vision_feature_select_strategy": "default",
            **({"image_grid_pinpoints": pinpoints} if pinpoints else {}),
        },
    )


LLAVA_NEXT = llava("LlavaNext", image_processor("LlavaNextImageProcessor", **CLIP_336), NEXT_PINPOINTS)
ONEVISION = Recipe(
    processor="LlavaOnevisionProcessor",
    model="LlavaOnevisionForConditionalGeneration",
    image=image_processor("LlavaOnevisionImageProcessor"),
    video="LlavaOnevisionVideoProcessor",
    named={"image_token": "<image>", "video_token": "<video>"},
    picture="<image>",
    options={"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
    config=lambda ids: {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {
            **TOWER,
            "model_type": "siglip_vision_model",
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "image_token_index": ids("<image>"),
        "video_token_index": ids("<video>"),
        "image_grid_pinpoints": ONEVISION_PINPOINTS,
        "vision_feature_select_strategy": "full",
    },
)
MLLAMA = Recipe(
    processor="MllamaProcessor",
    model="MllamaForConditionalGeneration",
    image=image_processor("MllamaImageProcessor"),
    named={"image_token": "<|image|>"},
    others=("<|python_tag|>",),
    picture="<|image|>",
    config=lambda ids: {
        "text_config": {"num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 48,
            "vision_output_dim": 96,
            "image_size": 224,
            "patch_size": 14,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            "initializer_range": 0.1,
        },
        "image_token_index": ids("<|image|>"),
    },
)
