"""Training batches: the shipped renderer's scenes, cut by the real image processor, with all their questions packed."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from recipes.demo_vlm.build import ASSISTANT, END, PAD, TILE_PX, build_processor
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers.image_utils import PILImageResampling, SizeDict

from chronostat.data.demo.questions import KINDS
from chronostat.data.demo.render import render
from chronostat.data.demo.scenes import BACKGROUNDS, COLOURS, GRID, SHAPES, Scene, draw_scene
from chronostat.data.samples import Split

GRIDS = (4, 3, 2, 1)  # tiles along one side of the image: 16, 9, 4 and 1 tiles
# The questions that every scene is asked, in this order; kinds that take longer to learn are asked more often.
SLOTS = (
    *("background", "count", "size", "colour", "points", "digit", "digit", "digit", "read", "read", "hop", "hop"),
    *("order", "worth", "worth", "part", "part", "compare", "gap", "gap", "sum", "total", "total"),
)
SLOT_TOKENS = 14
IGNORED = -100

CELL_CLASSES = {"what": 2 + len(SHAPES), "colour": 1 + len(COLOURS), "digit": 10, "size": 2, "background": 5}


class Batch(NamedTuple):
    """Scenes with everything that training asks about them.

    Attributes:
        tiles: levels by grid, [scene, tiles with thumbnail, 3, 32, 32] uint8.
        cells: [scene, 16, 5] class of each cell in the order of `CELL_CLASSES`, IGNORED where there is none.
        tokens: [scene, slot, 14] question, assistant mark, answer, end, padding.
        answered: [scene, slot, 14] true where the token belongs to the answer or ends it.
    """

    tiles: dict[int, Tensor]
    cells: Tensor
    tokens: Tensor
    answered: Tensor


class SceneBatches(IterableDataset[Batch]):
    """Endless batches, each worker with a stream of its own.

    Attributes:
        key: names the stream; equal keys give equal batches.
        grids: tiled in every batch.
        chances: of each of `GRIDS`; one of them is drawn and tiled as well. Empty: none.
    """

    def __init__(
        self,
        *,
        key: tuple[int, ...],
        split: Split,
        size: int,
        grids: tuple[int, ...],
        chances: tuple[float, ...] = (),
    ) -> None:
        self.key = key
        self.split: Split = split
        self.size = size
        self.grids = grids
        self.chances = chances

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([*self.key, 0 if worker is None else worker.id])
        while True:
            extra = [int(rng.choice(GRIDS, p=self.chances))] if self.chances else []
            scenes = [draw_scene(rng, self.split) for _ in range(self.size)]
            yield make_batch(rng, scenes, tuple({*self.grids, *extra}))


def load_batches(batches: SceneBatches, workers: int) -> Iterator[Batch]:
    """The batches, drawn by other processes ahead of time."""
    return iter(DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def make_batch(rng: np.random.Generator, scenes: list[Scene], grids: tuple[int, ...]) -> Batch:
    """Renders the scenes, tiles them for the grids and asks one question per slot."""
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)
    asked = [[encode(*KINDS[kind].draw(rng, scene)) for kind in SLOTS] for scene in scenes]
    return Batch(
        tiles={grid: cut_tiles(images, grid) for grid in grids},
        cells=torch.from_numpy(np.stack([cell_classes(scene) for scene in scenes])),
        tokens=torch.tensor([[tokens for tokens, _ in row] for row in asked]),
        answered=torch.tensor([[answered for _, answered in row] for row in asked]),
    )


def cut_tiles(images: Tensor, grid: int) -> Tensor:
    """[scene, 3, 128, 128] levels -> [scene, tiles, 3, 32, 32], by the real processor's own code."""
    return build_processor().image_processor.crop_image_to_patches(
        images,
        1,
        grid * grid,
        patch_size=SizeDict(height=TILE_PX, width=TILE_PX),
        resample=PILImageResampling.BICUBIC,
    )


@cache
def encode(prompt: str, answer: str) -> tuple[list[int], list[bool]]:
    """One slot: token ids, and which of them the model has to produce."""
    tokenizer = build_processor().tokenizer
    question = tokenizer.encode(prompt, add_special_tokens=False)
    answer_tokens = list(answer) if answer.isdigit() else tokenizer.tokenize(answer)
    reply = tokenizer.convert_tokens_to_ids([ASSISTANT, *answer_tokens, END])
    padding = SLOT_TOKENS - len(question) - len(reply)
    if padding < 0:
        raise ValueError(f"{prompt!r} with {answer!r} takes more than {SLOT_TOKENS} tokens")
    pad = tokenizer.convert_tokens_to_ids(PAD)
    answered = [False] * (len(question) + 1) + [True] * (len(reply) - 1) + [False] * padding
    return [*question, *reply, *[pad] * padding], answered


def cell_classes(scene: Scene) -> np.ndarray:
    """[16, 5] what is in each cell of the canvas, row by row, in the order of `CELL_CLASSES`."""
    classes = np.full((GRID * GRID, len(CELL_CLASSES)), IGNORED)
    classes[:, :2] = 0
    classes[:, 4] = BACKGROUNDS.index(scene.background)
    for digit in scene.digits:
        classes[digit.pose.cell, :3] = 1, 1 + COLOURS.index(digit.colour), digit.value
    for shape in scene.shapes:
        classes[shape.pose.cell, :2] = 2 + SHAPES.index(shape.name), 1 + COLOURS.index(shape.colour)
        classes[shape.pose.cell, 3] = shape.size == "big"
    return classes


@cache
def cell_of_token(grid: int) -> Tensor:
    """The cell under the centre of each image token, [image tokens], tiles row by row and the thumbnail last."""
    side = 4  # tokens along one side of a tile
    centre = (torch.arange(grid * side) + 0.5) / grid
    line = centre.long().view(grid, side)  # [tile, token] -> cell, along one direction
    cells = line[:, None, :, None] * GRID + line[None, :, None, :]  # [tile row, tile column, token row, token column]
    thumbnail = torch.arange(GRID * GRID)
    return cells.flatten() if grid == 1 else torch.cat([cells.flatten(), thumbnail])
