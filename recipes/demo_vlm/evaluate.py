"""Accuracy by kind under every setting, counted with training's packed forward: a scene answers all kinds at once."""

from collections import Counter
from itertools import islice
from time import perf_counter

import torch
from recipes.demo_vlm import forward
from recipes.demo_vlm.batches import GRIDS, SLOTS, Batch, SceneBatches, load_batches
from recipes.demo_vlm.build import BLOCKS, TOKENS_PER_TILE
from recipes.demo_vlm.losses import right_answers
from recipes.demo_vlm.table import Row
from transformers import InternVLForConditionalGeneration

from chronostat.data.samples import Split

_Key = tuple[int, int, int]  # tiles along one side, experts per token, blocks that run


@torch.no_grad()  # not inference mode: cached layouts must remain usable in training
def count_answers(
    model: InternVLForConditionalGeneration,
    *,
    split: Split,
    scenes: int,
    seconds: float,
    workers: int,
    batch: int = 128,
    seed: int = 0,
) -> list[Row]:
    """Counts exact answers for all tiles x experts x blocks x kinds on scenes of one split.

    Teacher forcing decides exactly what greedy decoding would: an answer is right if each of its tokens, the end
    included, is the most probable one after the right tokens before it.

    Args:
        model: in float32, with the weights as they are shipped.
        split: whose handwriting is shown.
        scenes: how many, in whole batches.
        seconds: no batch begins after this time.
        workers: processes that draw scenes.
        batch: scenes at a time.
        seed: names the stream of scenes.
    """
    start = perf_counter()
    right: Counter[tuple[_Key, str]] = Counter()
    asked: Counter[str] = Counter()
    stream = SceneBatches(key=(seed, 3), split=split, size=batch, grids=GRIDS)
    for loaded in islice(load_batches(stream, workers), max(1, scenes // batch)):
        asked.update(kind for kind in SLOTS for _ in range(batch))
        _count_batch(model, loaded, right)
        if perf_counter() - start > seconds:
            break
    return [_row(key, kind, n=asked[kind], right=count) for (key, kind), count in right.items()]


def _count_batch(model: InternVLForConditionalGeneration, loaded: Batch, right: Counter[tuple[_Key, str]]) -> None:
    device = model.device
    on_device = loaded._replace(tokens=loaded.tokens.to(device), answered=loaded.answered.to(device))
    for grid in GRIDS:
        image = forward.see(model, loaded.tiles[grid].to(device))
        for blocks, kept in forward.KEPT_BLOCKS.items():
            for top_k in forward.TOP_KS:
                logits = forward.read(model, image, on_device.tokens, kept=kept, top_k=top_k).logits
                hits = right_answers(logits, on_device).sum(0).tolist()
                for kind, count in zip(SLOTS, hits, strict=True):
                    right[(grid, top_k, blocks), kind] += count


def _row(key: _Key, kind: str, *, n: int, right: int) -> Row:
    grid, top_k, blocks = key
    tiles = grid * grid
    skipped = [index for index in range(BLOCKS) if index not in forward.KEPT_BLOCKS[blocks]]
    return {
        "vision_tokens": TOKENS_PER_TILE * (tiles + 1 if tiles > 1 else 1),
        "moe_topk": top_k,
        "block_skip": skipped,
        "kind": kind,
        "n": n,
        "right": right,
    }
