"""Sizes of the models with random weights: published ones, ones that a CPU executes in time, and toys for tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.kit.batches import Batch, fixed_batch, internvl_batch, molmo2_batch, qwen_batch


@dataclass(frozen=True)
class Family:
    """How a configuration becomes a model and a number of tiles a batch."""

    config_class: str
    batch: Callable[[Any, int], Batch]


QWEN = Family("Qwen2_5_VLConfig", qwen_batch)
INTERNVL = Family("InternVLConfig", internvl_batch)
MOLMO2 = Family("Molmo2Config", molmo2_batch)
LLAVA = Family("LlavaConfig", fixed_batch)
PALIGEMMA = Family("PaliGemmaConfig", fixed_batch)


def _qwen_sizes(text: dict[str, Any], vision: dict[str, Any], first_special: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": text.pop("mrope_section")}
    return {
        "text_config": {**text, "rope_parameters": rope, "eos_token_id": None, "bos_token_id": None},
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
        "image_token_id": first_special + 3,
        "video_token_id": first_special + 4,
        "vision_start_token_id": first_special,
        "vision_end_token_id": first_special + 1,
    }


def _internvl_sizes(text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    patches = vision["image_size"] // vision["patch_size"]
    return {
        "text_config": {**text, "tie_word_embeddings": tied, "eos_token_id": None, "bos_token_id": None},
        "vision_config": vision,
        "image_token_id": text["vocab_size"] - 8,
        "image_seq_length": (patches // 2) ** 2,
        "tie_word_embeddings": tied,
    }


def _internvl_cpu(*, text: tuple[int, int, int, int], vision: tuple[int, int]) -> dict[str, Any]:
    """Width, inner width, blocks and vocabulary of the text model; width and layers of the vision tower."""
    hidden, inner, blocks, vocabulary = text
    return _internvl_sizes(
        {
            "model_type": "qwen2",
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": blocks,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": hidden // 64,
            "vocab_size": vocabulary,
        },
        {
            "hidden_size": vision[0],
            "intermediate_size": 4 * vision[0],
            "num_hidden_layers": vision[1],
            "num_attention_heads": vision[0] // 64,
            "image_size": 112,
            "patch_size": 14,
        },
        tied=True,
    )


_MOE_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_TOY_MOE = {
    **_MOE_30B,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 16,
    "vocab_size": 256,
}
_INTERNVIT_300M = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
}
_QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "mrope_section": [16, 24, 24],
}
_TOY_QWEN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "mrope_section": [2, 3, 3],
}
_TOY_MOLMO2 = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "additional_vocab_size": 16,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "image_size": [56, 56],
        "patch_size": 8,
    },
    "adapter_config": {
        "vision_feature_layer": [2, 1],
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "text_hidden_size": 64,
    },
    "image_start_token_id": 256,
    "image_end_token_id": 257,
    "image_patch_id": 258,
    "low_res_image_start_token_id": 260,
    "frame_start_token_id": 263,
    "frame_end_token_id": 264,
}
_NO_END = {"eos_token_id": None, "bos_token_id": None}
_TOY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    **_NO_END,
}
_TOY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS: dict[str, tuple[Family, dict[str, Any]]] = {
    "qwen2.5-vl-7b": (
        QWEN,
        _qwen_sizes(_QWEN_7B, {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420}, 151652),
    ),
    "internvl-moe-30b": (INTERNVL, _internvl_sizes(_MOE_30B, _INTERNVIT_300M, tied=False)),
    "molmo2-8b": (
        MOLMO2,
        {"adapter_config": {"intermediate_size": 12288, "text_hidden_size": 4096}},  # the rest is the library's default
    ),
    "cpu-5m": (INTERNVL, _internvl_cpu(text=(192, 512, 6, 4096), vision=(192, 4))),
    "cpu-30m": (INTERNVL, _internvl_cpu(text=(512, 1408, 6, 8192), vision=(384, 4))),
    "cpu-300m": (INTERNVL, _internvl_cpu(text=(1024, 2816, 18, 16384), vision=(512, 16))),
    "toy-qwen": (
        QWEN,
        _qwen_sizes(
            _TOY_QWEN,
            {
                "depth": 3,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_heads": 4,
                "window_size": 56,
                "fullatt_block_indexes": [2],
            },
            240,
        ),
    ),
    "toy-moe": (
        INTERNVL,
        _internvl_sizes(
            _TOY_MOE,
            {
                **_INTERNVIT_300M,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
            },
            tied=False,
        ),
    ),
    "toy-molmo2": (MOLMO2, _TOY_MOLMO2),
    "llava-1.5-7b": (
        LLAVA,
        {
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 4096,
                "vocab_size": 32064,
                **_NO_END,
            },
            "image_token_index": 32000,  # the tower, CLIP-L at 336 px, is the library's default
        },
    ),
    "paligemma-3b": (
        PALIGEMMA,
        {
            "text_config": {
                "model_type": "gemma",
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_hidden_layers": 18,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "vocab_size": 257216,
                **_NO_END,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "projection_dim": 2048,
            "image_token_index": 257152,
        },
    ),
    "toy-llava": (
        LLAVA,
        {
            "text_config": {"model_type": "llama", **_TOY_TEXT},
            "vision_config": {
                "model_type": "clip_vision_model",
                **_TOY_TOWER,
                "image_size": 112,
                "patch_size": 14,
            },
            "image_token_index": 250,
        },
    ),
    "toy-paligemma": (
        PALIGEMMA,
        {
            "text_config": {"model_type": "gemma", **_TOY_TEXT},
            "vision_config": {
                "model_type": "siglip_vision_model",
                **_TOY_TOWER,
                "image_size": 112,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "projection_dim": 64,
            "image_token_index": 250,
        },
    ),
}
