"""What training asks of the model: right answers, and image tokens that know what they show."""

import torch
from recipes.demo_vlm.batches import CELL_CLASSES, IGNORED, SLOTS, Batch, cell_of_token
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from chronostat.data.demo.questions import KINDS

COARSE_WEIGHT = 0.5  # coarse kinds are learned early and would otherwise drown the others


class CellHead(nn.Linear):
    """Names what is in the cell under an image token; used in training only."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, sum(CELL_CLASSES.values()))

    def loss(self, features: Tensor, cells: Tensor, grid: int) -> Tensor:
        """Sum of the mean cross-entropies of the properties.

        Args:
            features: [scene, image token, hidden].
            cells: [scene, 16, property] classes.
            grid: tiles along one side.
        """
        targets = cells[:, cell_of_token(grid).to(cells.device)]
        logits = self(features).float().split(list(CELL_CLASSES.values()), dim=-1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten(), ignore_index=IGNORED)
            for i, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()


def question_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answers' tokens, [scene, slot, token, vocabulary] -> scalar."""
    weights = [COARSE_WEIGHT if KINDS[kind].needs == "coarse" else 1.0 for kind in SLOTS]
    weight = batch.answered[:, :, 1:] * torch.tensor(weights, device=logits.device)[:, None]
    losses = F.cross_entropy(
        logits[:, :, :-1].flatten(0, 2).float(), batch.tokens[:, :, 1:].flatten(), reduction="none"
    )
    return (losses * weight.flatten()).sum() / weight.sum()


def right_answers(logits: Tensor, batch: Batch) -> Tensor:
    """[scene, slot] true where every token of the answer is the most probable one, as greedy decoding needs."""
    hit = logits[:, :, :-1].argmax(-1) == batch.tokens[:, :, 1:]
    return (hit | ~batch.answered[:, :, 1:]).all(-1)
