"""What training asks of the model: right answers, and image tokens that know what they show."""

import torch
from recipes.demo_vlm.batches import CELL_CLASSES, IGNORED, SLOTS, Batch, cell_of_token
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from chronostat.data.demo.questions import KINDS

COARSE_WEIGHT = 0.5  # coarse kinds are learned early and would otherwise drown the others
PERCEPTION = ("coarse", "fine")  # what kinds need that only look; the others add steps of reasoning


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


def slot_weights(*, reasoning: bool) -> list[float]:
    """The weight of each of `SLOTS` in the question loss.

    Args:
        reasoning: whether the kinds that take steps of reasoning are taught. Paths with fewer blocks or a single
            expert are taught perception alone: taught everything, they learn everything (4 of 8 blocks then lose
            nothing but `total`), and the blocks and experts left out would have nothing of their own to do.
    """
    needs = [KINDS[kind].needs for kind in SLOTS]
    return [COARSE_WEIGHT if need == "coarse" else float(reasoning or need in PERCEPTION) for need in needs]


def question_loss(logits: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the answers' tokens.

    Args:
        logits: [scene, slot, token, vocabulary].
        batch: the questions.
        weights: of the slots, [slot].
    """
    weight = batch.answered[:, :, 1:] * weights[:, None]
    losses = F.cross_entropy(
        logits[:, :, :-1].flatten(0, 2).float(), batch.tokens[:, :, 1:].flatten(), reduction="none"
    )
    return (losses * weight.flatten()).sum() / weight.sum()


def right_answers(logits: Tensor, batch: Batch) -> Tensor:
    """[scene, slot] true where every token of the answer is the most probable one, as greedy decoding needs."""
    hit = logits[:, :, :-1].argmax(-1) == batch.tokens[:, :, 1:]
    return (hit | ~batch.answered[:, :, 1:]).all(-1)
