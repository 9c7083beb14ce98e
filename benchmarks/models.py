"""Models of real sizes with random weights, and batches of real shapes: what the long benchmarks measure.

No weights are loaded. A model is built from its configuration, directly on its device and in its dtype, and initialised
there by the library's own rules, so buffers are right and 61 GB take seconds. Latency does not depend on the values of
the weights; which experts a router picks does, and random weights pick them about evenly.

A batch holds ``TEXT_TOKENS`` of text and an image of so many tiles, as tensors: nothing is preprocessed. InternVL's
tiles are 448 x 448 pixels and 256 tokens each. Qwen2.5-VL cuts no tiles: it gets one image with as many tokens (256,
1280 and 3328 for 1, 5 and 13 tiles). Molmo2's crops overlap, so 1, 5 and 13 crops of 378 x 378 pixels, the whole image
in low resolution among them, give 196, 725 and 1582 tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from chronostat.data.demo.task import DemoTask
from chronostat.errors import ModelError
from chronostat.models.load import load_vlm
from chronostat.models.prepare import prepare

TEXT_TOKENS = 60
TEXT_BEFORE_IMAGE = 20
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is measured.

    Attributes:
        batch: makes a request of so many image tiles, on the model's device.
        processor: None for a random model, whose batches are ready tensors.
    """

    name: str
    model: PreTrainedModel
    batch: Callable[[int], Batch]
    processor: ProcessorMixin | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def build(name: str, device: str | torch.device, dtype: torch.dtype) -> Subject:
    """A model by name, ready to generate.

    Raises:
        ModelError: an unknown name, or an architecture that this version of transformers does not have.
    """
    if name == "bundled":
        return _bundled(str(device), str(dtype).removeprefix("torch."))
    if name not in MODELS:
        raise ModelError(f"no benchmark model is called {name!r}; known: bundled, {', '.join(MODELS)}")
    family, sizes = MODELS[name]
    if not hasattr(transformers, family.config_class):
        raise ModelError(f"{name} needs {family.config_class}, which transformers {transformers.__version__} lacks")
    config = getattr(transformers, family.config_class)(**sizes)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.eval().generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return Subject(name=name, model=model, batch=lambda tiles: _on(model, family.batch(model.config, tiles)))


def _bundled(device: str, dtype: str) -> Subject:
    vlm = load_vlm(device=device, dtype=dtype)  # pyright: ignore[reportArgumentType] - names of torch dtypes
    vlm.model.generation_config.update(eos_token_id=None)  # answers of equal length
    sample = DemoTask(seed=0).split("train")[0]

    def batch(tiles: int) -> Batch:
        return prepare(
            vlm.processor,
            sample.load_images(),
            sample.prompt,
            device=vlm.model.device,
            dtype=vlm.model.dtype,
            image_arguments={"max_patches": tiles},
        )

    return Subject(name="bundled", model=vlm.model, batch=batch, processor=vlm.processor)


def _on(model: PreTrainedModel, batch: Batch) -> Batch:
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in batch.items()
    }


def _prompt(image: list[int], placeholder: int, *, most_id: int) -> Batch:
    """Text, the ids of an image, text; the same for each call."""
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(10, most_id, (TEXT_TOKENS,), generator=rng)
    ids = torch.cat([text[:TEXT_BEFORE_IMAGE], torch.tensor(image), text[TEXT_BEFORE_IMAGE:]])[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == placeholder).long(),
    }


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _qwen_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401 - the library's configuration
    """One image, as square as it gets, with as many tokens as ``tiles`` tiles of 256 (of 4 in the toy)."""
    vision = config.vision_config
    tokens = tiles * (256 if vision.hidden_size > 64 else 4)
    rows = _most_square(tokens)
    grid = (1, rows * vision.spatial_merge_size, tokens // rows * vision.spatial_merge_size)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    image = [config.vision_start_token_id, *[config.image_token_id] * tokens, config.vision_end_token_id]
    return {
        **_prompt(image, config.image_token_id, most_id=min(config.image_token_id, 1000)),
        "pixel_values": _noise(math.prod(grid), width),
        "image_grid_thw": torch.tensor([grid]),
    }


def _internvl_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401
    """Tiles of the vision tower's size; ``image_seq_length`` tokens each."""
    image = [config.image_token_id] * (config.image_seq_length * tiles)
    batch = _prompt(image, config.image_token_id, most_id=min(config.image_token_id, 1000))
    del batch["mm_token_type_ids"]
    return {**batch, "pixel_values": _noise(tiles, 3, *config.vision_config.image_size)}


def _molmo2_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401
    """The whole image as one crop, then ``tiles - 1`` overlapping crops, pooled 2 x 2 where they do not overlap."""
    vision = config.vision_config
    side = vision.image_size[0] // vision.patch_size
    whole = _pooled(torch.arange(side * side).reshape(side, side))
    parts, grids = [whole.flatten(0, 1)], [*whole.shape[:2], 0, 0]
    if tiles > 1:
        rows = _most_square(tiles - 1)
        crops = _pooled(_crop_grid(rows, (tiles - 1) // rows, side) + side * side)
        parts, grids = [*parts, crops.flatten(0, 1)], [*whole.shape[:2], *crops.shape[:2]]
    pooling = torch.cat(parts)
    image = [config.image_start_token_id, *[config.image_patch_id] * len(pooling), config.image_end_token_id]
    return {
        **_prompt(image, config.image_patch_id, most_id=min(config.image_start_token_id, 1000)),
        "pixel_values": _noise(tiles, side * side, 3 * vision.patch_size**2),
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([grids]),
        "image_num_crops": torch.tensor([tiles]),
    }


def _most_square(count: int) -> int:
    """Rows of the rectangle of ``count`` cells that is nearest to a square."""
    return max(rows for rows in range(1, math.isqrt(count) + 1) if count % rows == 0)


def _crop_grid(rows: int, columns: int, side: int) -> Tensor:
    """For each patch of the image its index in the crops, which share margins of 4 patches (of 1 in the toy)."""
    margin = 4 if side > 8 else 1
    step = side - 2 * margin

    def place(count: int) -> tuple[Tensor, Tensor]:
        at = torch.arange(count * step + 2 * margin)
        crop = ((at - margin) // step).clamp(0, count - 1)
        return crop, at - crop * step

    (crop_row, row), (crop_column, column) = place(rows), place(columns)
    crop = crop_row[:, None] * columns + crop_column
    return crop * side * side + row[:, None] * side + column


def _pooled(grid: Tensor) -> Tensor:
    """Groups of 2 x 2 indices of a grid, -1 where it ends; shape [rows, columns, 4]."""
    padded = torch.nn.functional.pad(grid, (0, grid.shape[1] % 2, 0, grid.shape[0] % 2), value=-1)
    return padded.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)


@dataclass(frozen=True)
class Family:
    """How a configuration becomes a model and a number of tiles a batch."""

    config_class: str
    batch: Callable[[Any, int], Batch]


QWEN = Family("Qwen2_5_VLConfig", _qwen_batch)
INTERNVL = Family("InternVLConfig", _internvl_batch)
MOLMO2 = Family("Molmo2Config", _molmo2_batch)


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
}
