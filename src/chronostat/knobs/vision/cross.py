"""Mllama: the language model reads the tiles by cross-attention; its own sequence holds one token an image."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.knobs.vision.mechanism import Mechanism, steps
from chronostat.knobs.vision.reading import Reader


def cross_attended_tiles(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """At most ``max_image_tiles`` tiles; what counts is the positions that cross-attention reads.

    An image always has as many tiles as allowed, the missing ones are black and masked: n tiles of p positions are
    n p, whatever the image's shape. The vision tower is built for the trained number, with one embedding for each tile
    of each arrangement, so under fewer tiles it is given those of the first n tiles of the same arrangement.
    """
    most = reader.count("max_image_tiles")
    vision: Any = getattr(model.config, "vision_config", None)
    if most is None or getattr(vision, "max_num_tiles", None) != most:
        return None
    positions = (vision.image_size // vision.patch_size) ** 2 + 1  # and one for the whole tile

    @contextmanager
    def around(model: PreTrainedModel, tiles: int) -> Generator[None]:
        with ExitStack() as stack:
            for owner, name in ((reader.image_processor, "max_image_tiles"), (vision, "max_num_tiles")):
                stack.callback(setattr, owner, name, most)
                setattr(owner, name, tiles)
            for module in _tile_embeddings(model, most):
                _give_first_tiles(stack, module, tiles, most)
            yield

    return steps(
        says=f"max_image_tiles of {reader.owner} and the tile embeddings; {positions} cross-attended positions a tile",
        full=most * positions,
        tokens={count: count * positions for count in range(1, most + 1)},
        arguments=lambda _: {},
        around=around,
    )


def _tile_embeddings(model: PreTrainedModel, most: int) -> list[Any]:
    """The modules that add one of the learned embeddings to each tile."""
    return [
        module
        for module in model.modules()
        if getattr(module, "max_num_tiles", None) == most
        and any(isinstance(child, nn.Embedding) for child in module.children())
    ]


def _give_first_tiles(stack: ExitStack, module: Any, tiles: int, most: int) -> None:  # noqa: ANN401 - any module
    """Let a module work on ``tiles`` tiles until the stack is left."""
    stack.callback(setattr, module, "max_num_tiles", most)
    module.max_num_tiles = tiles
    for child in module.children():
        if isinstance(child, nn.Embedding):
            stack.callback(child.register_forward_hook(_first_tiles(tiles, most)).remove)


def _first_tiles(tiles: int, most: int) -> Callable[[nn.Embedding, tuple[Tensor], Tensor], Tensor]:
    """A hook that replaces what an embedding gives: ids [n] of arrangements to [n, tiles, width] in one row each."""
    allowed = _arrangements(tiles)
    trained = {shape: number for number, shape in enumerate(_arrangements(most), start=1)}
    numbers = torch.tensor([0, *(trained[shape] for shape in allowed)])  # 0: no image

    def hook(embedding: nn.Embedding, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        rows = nn.functional.embedding(numbers.to(inputs[0].device)[inputs[0]], embedding.weight)
        return rows[..., : rows.shape[-1] // most * tiles]

    return hook


def _arrangements(most: int) -> list[tuple[int, int]]:
    """The arrangements of up to ``most`` tiles, in the order in which Mllama numbers them from 1."""
    return [(a, b) for a in range(1, most + 1) for b in range(1, most + 1) if a * b <= most]
