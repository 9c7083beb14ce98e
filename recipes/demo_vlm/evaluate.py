"""Accuracy by kind under every setting, on scenes and handwriting that training never saw."""

from collections import Counter
from itertools import islice

import torch
from recipes.demo_vlm import forward
from recipes.demo_vlm.batches import GRIDS, SLOTS, SceneBatches, load_batches
from recipes.demo_vlm.losses import right_answers
from transformers import InternVLForConditionalGeneration

from chronostat.data.samples import Split

Row = dict[str, int | str]


@torch.inference_mode()
def accuracy_rows(
    model: InternVLForConditionalGeneration, *, split: Split, scenes: int, workers: int, seed: int = 0, batch: int = 128
) -> list[Row]:
    """Counts exact answers for all tiles x experts x blocks x kinds.

    Teacher forcing decides exactly what greedy decoding would: an answer is right if each of its tokens, the end
    included, is the most probable one after the right tokens before it.

    Returns:
        One row per setting and kind with `n` questions asked and `right` answers.
    """
    right: Counter[tuple[int, int, int, str]] = Counter()
    stream = SceneBatches(key=(seed, 3), split=split, size=batch, grids=GRIDS)
    device = model.device
    for loaded in islice(load_batches(stream, workers), scenes // batch):
        tokens, answered = loaded.tokens.to(device), loaded.answered.to(device)
        for grid in GRIDS:
            image = forward.see(model, loaded.tiles[grid].to(device))
            for blocks, kept in forward.KEPT_BLOCKS.items():
                for top_k in forward.TOP_KS:
                    logits = forward.read(model, image, tokens, kept=kept, top_k=top_k).logits
                    hits = right_answers(logits, loaded._replace(tokens=tokens, answered=answered)).sum(0).tolist()
                    for kind, count in zip(SLOTS, hits, strict=True):
                        right[grid * grid, top_k, blocks, kind] += count
    asked = Counter(SLOTS)
    return [
        {"tiles": t, "top_k": k, "blocks": b, "kind": kind, "n": scenes // batch * batch * asked[kind], "right": count}
        for (t, k, b, kind), count in right.items()
    ]
