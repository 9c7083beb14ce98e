"""Which families cut images into tiles up to a number? The image processor takes it; the whole image is beside them.

GOT-OCR and Gemma 3 cut only if they are asked to.
"""

from collections.abc import Callable
from typing import Any

from transformers.models.smolvlm import processing_smolvlm

from benchmarks.processors.families.recipe import TOWER, Pair, Recipe, image_processor

INTERNVL = Recipe(
    processor="InternVLProcessor",
    model="InternVLForConditionalGeneration",
    image=image_processor("GotOcr2ImageProcessor", size={"height": 448, "width": 448}, crop_to_patches=True),
    video="InternVLVideoProcessor",
    named={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    picture="<IMG_CONTEXT>",
    config=lambda ids: {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**TOWER, "image_size": 448, "patch_size": 14},
        "image_token_id": ids("<IMG_CONTEXT>"),
        "image_seq_length": 256,
    },
)
GOT = Recipe(
    processor="GotOcr2Processor",
    model="GotOcr2ForConditionalGeneration",
    image=image_processor("GotOcr2ImageProcessor", size={"height": 1024, "width": 1024}),
    named={},
    others=("<imgpad>", "<img>", "</img>"),
    picture="<img><imgpad></img>",
    config=lambda ids: {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {
            **TOWER,
            "image_size": 1024,
            "patch_size": 16,
            "output_channels": 16,
            "mlp_dim": 48,
            "window_size": 4,
            "global_attn_indexes": [1],
        },
        "image_token_index": ids("<imgpad>"),
        "image_seq_length": 256,
    },
)
AYA = Recipe(
    processor="AyaVisionProcessor",
    model="AyaVisionForConditionalGeneration",
    image=image_processor("GotOcr2ImageProcessor", size={"height": 364, "width": 364}, crop_to_patches=True),
    named={"image_token": "<image>"},
    others=("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL"),
    picture="<image>",
    options={"patch_size": 14, "img_size": 364, "downsample_factor": 2},
    config=lambda ids: {
        "text_config": {"model_type": "cohere2", "head_dim": 8, "logit_scale": 1.0, "sliding_window": 4096},
        "vision_config": {
            **TOWER,
            "image_size": 364,
            "patch_size": 14,
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
        },
        "image_token_index": ids("<|IMG_PATCH|>"),
        "downsample_factor": 2,
        "alignment_intermediate_size": 64,
    },
)
LLAMA4 = Recipe(
    processor="Llama4Processor",
    model="Llama4ForConditionalGeneration",
    image=image_processor("Llama4ImageProcessor"),
    named={},
    others=(
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    ),
    picture="<|image|>",
    config=lambda ids: {
        "text_config": {
            "intermediate_size": 32,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "num_experts_per_tok": 1,
            "num_local_experts": 4,
            "moe_layers": [1],
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 4096,
        },
        "vision_config": {
            **TOWER,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "image_size": 336,
            "patch_size": 14,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "pixel_shuffle_ratio": 0.5,
        },
        "image_token_index": ids("<|patch|>"),
        "boi_token_index": ids("<|image_start|>"),
        "eoi_token_index": ids("<|image_end|>"),
    },
)


def _idefics(name: str, image: Callable[[], Any], size: int, patch: int, factor: int) -> Recipe:
    return Recipe(
        processor=f"{name}Processor",
        model=f"{name}ForConditionalGeneration",
        image=image,
        video="SmolVLMVideoProcessor" if name == "SmolVLM" else None,
        named={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        picture="<image>",
        options={"image_seq_len": (size // patch // factor) ** 2},
        config=lambda ids: {
            "text_config": {"model_type": "llama", "head_dim": 8},
            "vision_config": {**TOWER, "image_size": size, "patch_size": patch},
            "image_token_id": ids("<image>"),
            "scale_factor": factor,
        },
    )


def smolvlm() -> Pair:
    """SmolVLM's processor spells out numbers in the prompts of videos, by a package that images do not need."""
    library: Any = processing_smolvlm
    before = library.num2words
    library.num2words = before or str
    try:
        squares = image_processor(
            "SmolVLMImageProcessor", size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
        )
        return _idefics("SmolVLM", squares, 512, 16, 4)()
    finally:
        library.num2words = before


IDEFICS3 = _idefics("Idefics3", image_processor("Idefics3ImageProcessor"), 364, 14, 2)
GEMMA3 = Recipe(
    processor="Gemma3Processor",
    model="Gemma3ForConditionalGeneration",
    image=image_processor("Gemma3ImageProcessor"),
    named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    picture="<start_of_image>",
    config=lambda ids: {
        "text_config": {"head_dim": 8, "sliding_window": 4096},
        "vision_config": {**TOWER, "image_size": 224, "patch_size": 14, "vision_use_head": False},
        "mm_tokens_per_image": 256,
        "image_token_index": ids("<image_soft_token>"),
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
    },
)
LFM2 = Recipe(
    processor="Lfm2VlProcessor",
    model="Lfm2VlForConditionalGeneration",
    image=image_processor("Lfm2VlImageProcessor"),
    named={
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    },
    picture="<image>",
    config=lambda ids: {
        "text_config": {
            "model_type": "lfm2",
            "layer_types": ["conv", "full_attention"],
            "block_multiple_of": 8,
            "conv_L_cache": 3,
        },
        "vision_config": {
            **TOWER,
            "patch_size": 16,
            "model_type": "siglip2_vision_model",
            "num_patches": 256,
            "vision_use_head": False,
        },
        "image_token_id": ids("<image>"),
        "downsample_factor": 2,
        "projector_hidden_size": 32,
    },
)
MOLMO2 = Recipe(
    processor="Molmo2Processor",
    model="Molmo2ForConditionalGeneration",
    image=image_processor("Molmo2ImageProcessor"),
    video="Molmo2VideoProcessor",
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
    others=(
        "<im_patch>",
        "<im_col>",
        "<im_start>",
        "<low_res_im_start>",
        "<frame_start>",
        "<im_end>",
        "<frame_end>",
        "<im_low>",
    ),
    picture="<|image|>",
    config=lambda ids: {
        "text_config": {"head_dim": 8, "additional_vocab_size": 8},
        "vision_config": {
            **TOWER,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "image_size": [378, 378],
            "patch_size": 14,
            "num_position_embeddings": 729,
        },
        "adapter_config": {
            "vision_feature_layer": [2, 1],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "text_hidden_size": 32,
        },
        "image_start_token_id": ids("<im_start>"),
        "low_res_image_start_token_id": ids("<low_res_im_start>"),
        "image_end_token_id": ids("<im_end>"),
        "image_patch_id": ids("<im_patch>"),
        "frame_start_token_id": ids("<frame_start>"),
        "frame_end_token_id": ids("<frame_end>"),
    },
)
