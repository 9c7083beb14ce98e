"""Which families scale images to an area, an edge or a number of tokens? Patches at the image's own resolution."""

from collections.abc import Callable
from typing import Any

from benchmarks.processors.families.recipe import TOWER, Recipe, image_processor

QWEN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def _qwen(processor: str, model: str, image: Callable[[], Any], video: str, **vision: Any) -> Recipe:  # noqa: ANN401
    return Recipe(
        processor=processor,
        model=model,
        image=image,
        video=video,
        named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        others=("<|vision_start|>", "<|vision_end|>"),
        picture="<|vision_start|><|image_pad|><|vision_end|>",
        config=lambda ids: {
            "text_config": {"rope_parameters": QWEN_ROPE, **({"head_dim": 8} if "Qwen3" in model else {})},
            "vision_config": {"depth": 2, "num_heads": 2, "initializer_range": 0.1, "hidden_size": 32, **vision},
            "image_token_id": ids("<|image_pad|>"),
            "video_token_id": ids("<|video_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
        },
    )


QWEN2 = _qwen(
    "Qwen2VLProcessor",
    "Qwen2VLForConditionalGeneration",
    image_processor("Qwen2VLImageProcessor"),
    "Qwen2VLVideoProcessor",
    embed_dim=32,
    mlp_ratio=2,
)
QWEN25 = _qwen(
    "Qwen2_5_VLProcessor",
    "Qwen2_5_VLForConditionalGeneration",
    image_processor("Qwen2VLImageProcessor", min_pixels=3136, max_pixels=12845056),
    "Qwen2VLVideoProcessor",
    out_hidden_size=32,
    intermediate_size=48,
    fullatt_block_indexes=[1],
)
QWEN3 = _qwen(
    "Qwen3VLProcessor",
    "Qwen3VLForConditionalGeneration",
    image_processor("Qwen2VLImageProcessor", patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}),
    "Qwen3VLVideoProcessor",
    patch_size=16,
    out_hidden_size=32,
    intermediate_size=48,
    num_position_embeddings=2304,
    deepstack_visual_indexes=[0],
)
GLM4V = Recipe(
    processor="Glm4vProcessor",
    model="Glm4vForConditionalGeneration",
    image=image_processor("Glm4vImageProcessor"),
    video="Glm4vVideoProcessor",
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
    others=("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    picture="<|begin_of_image|><|image|><|end_of_image|>",
    config=lambda ids: {
        "text_config": {"rope_parameters": {**QWEN_ROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "image_size": 336,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.1,
        },
        "image_token_id": ids("<|image|>"),
        "video_token_id": ids("<|video|>"),
        "image_start_token_id": ids("<|begin_of_image|>"),
        "image_end_token_id": ids("<|end_of_image|>"),
        "video_start_token_id": ids("<|begin_of_video|>"),
        "video_end_token_id": ids("<|end_of_video|>"),
    },
)
MUSE = Recipe(
    processor="MuseGlimmerProcessor",
    model="MuseGlimmerForConditionalGeneration",
    image=image_processor("MuseGlimmerImageProcessor"),
    video="MuseGlimmerVideoProcessor",
    named={},
    others=(
        "<|patch|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|video|>",
        "<|vid_frame_separator|>",
        "<|vid_start|>",
        "<|vid_end|>",
    ),
    picture="<|patch|>",
    config=lambda ids: {
        "text_config": {
            "head_dim": 8,
            "sliding_window": 4096,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {
            **TOWER,
            "patch_size": 14,
            "pos_emb_height": 32,
            "pos_emb_width": 32,
            "patch_temporal": 2,
            "merge_size": 2,
            "max_position_embeddings": 256,
        },
        "image_token_id": ids("<|patch|>"),
        "video_token_id": ids("<|video|>"),
        "out_hidden_size": 128,
        "projector_hidden_size": 32,
    },
)
GEMMA4 = Recipe(
    processor="Gemma4Processor",
    model="Gemma4ForConditionalGeneration",
    image=image_processor("Gemma4ImageProcessor"),
    video="Gemma4VideoProcessor",
    hears="Gemma4AudioFeatureExtractor",
    named={
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    picture="<|image|>",
    config=lambda ids: {
        "text_config": {
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 4096,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
        },
        "vision_config": {
            **TOWER,
            "patch_size": 16,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "pooling_kernel_size": 3,
            "position_embedding_size": 1024,
        },
        "image_token_id": ids("<|image|>"),
        "audio_token_id": ids("<|audio|>"),
        "video_token_id": ids("<|video|>"),
        "boi_token_id": ids("<|image>"),
        "eoi_token_id": ids("<image|>"),
    },
)


def _pixtral(model: str, image: Callable[[], Any], patch: int, merge: int) -> Recipe:
    return Recipe(
        processor="PixtralProcessor",
        model=model,
        image=image,
        named={},
        others=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        picture="[IMG]",
        options={"patch_size": patch, "spatial_merge_size": merge},
        config=lambda ids: {
            "text_config": {"model_type": "mistral", "head_dim": 8},
            "vision_config": {
                **TOWER,
                "model_type": "pixtral",
                "image_size": 1540 if merge > 1 else 1024,
                "patch_size": patch,
                "head_dim": 16,
            },
            "image_token_index": ids("[IMG]"),
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
            **({"spatial_merge_size": merge} if merge > 1 else {}),
        },
    )


PIXTRAL = _pixtral("LlavaForConditionalGeneration", image_processor("PixtralImageProcessor"), 16, 1)
MISTRAL3 = _pixtral(
    "Mistral3ForConditionalGeneration",
    image_processor("PixtralImageProcessor", size={"longest_edge": 1540}, patch_size=14),
    14,
    2,
)
