"""Requests of real shapes: text and an image of so many tiles as ready tensors; nothing is preprocessed.

A batch holds ``TEXT_TOKENS`` of text. InternVL's tiles are 448 x 448 pixels and 256 tokens each. Qwen2.5-VL cuts no
tiles: it gets one image with as many tokens (256, 1280 and 3328 for 1, 5 and 13 tiles). Molmo2's crops overlap, so 1, 5
and 13 crops of 378 x 378 pixels, the whole image in low resolution among them, give 196, 725 and 1582 tokens. LLaVA 1.5
and PaliGemma take images of one size, 576 and 256 tokens each; their tiles are images.
"""

import math
from typing import Any

import torch
from torch import Tensor

TEXT_TOKENS = 60
TEXT_BEFORE_IMAGE = 20
Batch = dict[str, Tensor]


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


def qwen_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401 - the library's configuration
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


def internvl_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401
    """Tiles of the vision tower's size; ``image_seq_length`` tokens each."""
    image = [config.image_token_id] * (config.image_seq_length * tiles)
    batch = _prompt(image, config.image_token_id, most_id=min(config.image_token_id, 1000))
    del batch["mm_token_type_ids"]
    return {**batch, "pixel_values": _noise(tiles, 3, *config.vision_config.image_size)}


def fixed_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401
    """Images of the one size that the vision tower takes, ``tiles`` of them, a placeholder for each patch."""
    vision = config.vision_config
    image = [config.image_token_index] * ((vision.image_size // vision.patch_size) ** 2 * tiles)
    batch = _prompt(image, config.image_token_index, most_id=min(config.image_token_index, 1000))
    types = batch.pop("mm_token_type_ids")
    if config.model_type == "paligemma":  # its prompt is read in both directions, image and text alike
        batch["token_type_ids"] = torch.zeros_like(types)
    return {**batch, "pixel_values": _noise(tiles, 3, vision.image_size, vision.image_size)}


def molmo2_batch(config: Any, tiles: int) -> Batch:  # noqa: ANN401
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
