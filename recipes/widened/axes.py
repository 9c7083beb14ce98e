"""Where the channels of a model's axes go when it is widened, and how weights are spread over their copies."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """The channels of one axis in the wide model.

    Attributes:
        places: the new places of each old channel, shape [old, copies].
    """

    places: Tensor

    @property
    def copies(self) -> int:
        """How often each channel is there."""
        return self.places.shape[1]

    @property
    def sources(self) -> Tensor:
        """The old channel of each new place, shape [old * copies]."""
        sources = torch.empty(self.places.numel(), dtype=torch.long)
        sources[self.places.flatten()] = torch.arange(len(self.places)).repeat_interleave(self.copies)
        return sources


def repeated(size: int, copies: int) -> Axis:
    """Channel i at i * copies to i * copies + copies - 1: neighbouring blocks keep their order (pixel shuffle)."""
    return Axis(torch.arange(size * copies).view(size, copies))


def heads(count: int, dim: int, copies: int) -> Axis:
    """Channels of attention heads, which are repeated as wholes: grouped queries stay with their keys."""
    head = torch.arange(count * copies).view(count, 1, copies)
    within = torch.arange(dim).view(1, dim, 1)
    return Axis((head * dim + within).reshape(count * dim, copies))


class Spreader:
    """Writes widened tensors: weights that read copies of a channel are random shares, which sum to the old weight.

    Args:
        spread: how unequal the shares are: up to so much of their mean; 0: all equal.
        seed: draws them.
        device: where the wide model is made.
    """

    def __init__(self, spread: float, seed: int, device: torch.device) -> None:
        self._spread = spread
        self._device = device
        self._random = torch.Generator(device=device).manual_seed(seed)

    def vector(self, old: Tensor, out: Axis) -> Tensor:
        """Repeat the last axis: of an embedding, a bias, a norm's weight, or positions."""
        return old.to(self._device)[..., out.sources.to(self._device)]

    def rows(self, old: Tensor, out: Axis) -> Tensor:
        """Repeat the first axis."""
        return self.vector(old.movedim(0, -1), out).movedim(-1, 0)

    def shared(self, old: Tensor, into: Axis) -> Tensor:
        """Divide each value of the last axis among the copies of the channel that it reads."""
        old = old.to(self._device)
        shares = torch.full((*old.shape, into.copies), 1 / into.copies, device=self._device)
        if into.copies > 1 and self._spread:
            noise = torch.rand(shares.shape, generator=self._random, device=self._device) * 2 - 1
            shares += (noise - noise.mean(-1, keepdim=True)) * (self._spread / into.copies)
        new = torch.empty((*old.shape[:-1], into.places.numel()), device=self._device)
        new[..., into.places.flatten().to(self._device)] = (old[..., None] * shares).flatten(-2)
        return new

    def linear(self, old: Tensor, out: Axis | None, into: Axis) -> Tensor:
        """A matrix [out, in]. Rows are repeated first, so each copy of one has shares of its own."""
        return self.shared(old if out is None else self.rows(old, out), into)
