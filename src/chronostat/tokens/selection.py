"""What a method is given and what it answers: the tokens of one picture, and which of them are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The features of one image, or of one tile where the model hands tiles over one by one.

    Attributes:
        index: its place among the pictures that were encoded together.
        together: how many they are.
        features: as they would take the placeholders' places, shape [N, d].
        grid: rows and columns in which the tokens lie, row by row; one row where no grid of N tokens is known.
    """

    index: int
    together: int
    features: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which K of N tokens are kept.

    Attributes:
        tokens: ascending, shape [K]; a kept token stands where this one stood.
        cells: the tokens that each kept one is the average of, cell after cell, and where in that row each cell
            begins, shapes [N] and [K]; None: a kept one is itself alone.
    """

    tokens: Tensor
    cells: tuple[Tensor, Tensor] | None = None

    def of(self, features: Tensor) -> Tensor:
        """The kept ones of features of shape [N, d], shape [K, d]."""
        if self.cells is None:
            return features[self.tokens]
        members, starts = self.cells
        return embedding_bag(members, features.float(), starts, mode="mean").to(features.dtype)


def highest(scores: Tensor, count: int) -> Selection:
    """The ``count`` tokens of the highest scores, in their own order; scores of shape [N]."""
    return Selection(tokens=scores.topk(count).indices.sort().values)


def shares(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` tokens given out among pictures in proportion to their sizes, by largest remainder.

    Each picture gets one at least where there are enough.
    """
    total = sum(sizes)
    least = min(1, count // len(sizes))
    given = [max(least, count * size // total) for size in sizes]
    by_need = sorted(range(len(sizes)), key=lambda i: given[i] - count * sizes[i] / total)  # the neediest first
    step = 1 if sum(given) < count else -1
    while sum(given) != count:
        for i in by_need[::step]:
            if sum(given) != count and least <= given[i] + step <= sizes[i]:
                given[i] += step
    return tuple(given)


def all_of(size: int, device: torch.device) -> Selection:
    """Every one of ``size`` tokens."""
    return Selection(tokens=torch.arange(size, device=device))
