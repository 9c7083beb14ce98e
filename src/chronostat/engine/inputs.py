"""The arguments of a decoder's forward: tensors that a graph reads from places of its own, and all else."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TOKEN_AXIS = {"inputs_embeds": 1, "input_ids": 1, "position_ids": -1}  # of what can be padded
_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One call's arguments, without cache and without a mask that masks nothing.

    Attributes:
        tensors: by name.
        plain: by name; what a graph is captured for.
        tokens: q, the tokens of this forward.
    """

    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]
    tokens: int

    @property
    def can_be_padded(self) -> bool:
        """Whether it is known of every tensor where its tokens lie."""
        return all(
            name in _TOKEN_AXIS and tensor.shape[_TOKEN_AXIS[name]] == self.tokens
            for name, tensor in self.tensors.items()
        )

    def signature(self) -> Hashable:
        """What a graph for such arguments depends on, beside the tokens that it is for."""
        padded = self.can_be_padded  # then their own number of tokens does not count
        tensors = tuple(
            (name, _without_tokens(name, tensor) if padded else tensor.shape, tensor.dtype, tensor.device)
            for name, tensor in self.tensors.items()
        )
        return (tensors, tuple(self.plain.items()))


def read(arguments: Mapping[str, Any]) -> Inputs | str:
    """Sort arguments; where they hold what no graph can be given, say what in a few words."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if name == "past_key_values" or (name == "attention_mask" and isinstance(value, Tensor) and value.ndim == 2):
            continue  # a mask of ones: looked at when the cache was made
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, _PLAIN):
            plain[name] = value
        else:
            return f"its decoder is given a {type(value).__name__} as {name}"
    given = tensors.get("inputs_embeds", tensors.get("input_ids"))
    if given is None:
        return "its decoder is given neither embeddings nor ids"
    return Inputs(tensors=tensors, plain=plain, tokens=given.shape[1])


class Places:
    """Tensors at fixed addresses, as a graph reads them.

    Args:
        inputs: of the first call.
        tokens: that there is room for.
    """

    def __init__(self, inputs: Inputs, tokens: int) -> None:
        self._padding = tokens - inputs.tokens
        self.tensors = {name: self._place(name, tensor) for name, tensor in inputs.tensors.items()}
        self.fill(inputs)

    def fill(self, inputs: Inputs) -> None:
        """Copy a call's tensors in; behind them zeros, whatever was there before."""
        for name, tensor in inputs.tensors.items():
            place = self.tensors[name]
            if place.shape == tensor.shape:
                place.copy_(tensor)
                continue
            axis = _TOKEN_AXIS[name]
            length = tensor.shape[axis]
            place.narrow(axis, 0, length).copy_(tensor)
            place.narrow(axis, length, place.shape[axis] - length).zero_()

    def _place(self, name: str, tensor: Tensor) -> Tensor:
        if not self._padding:
            return torch.empty_like(tensor, memory_format=torch.contiguous_format)
        shape = list(tensor.shape)
        shape[_TOKEN_AXIS[name]] += self._padding
        return tensor.new_zeros(shape)


def _without_tokens(name: str, tensor: Tensor) -> tuple[int, ...]:
    axis = _TOKEN_AXIS[name] % tensor.ndim
    return (*tensor.shape[:axis], *tensor.shape[axis + 1 :])


def padded_length(tokens: int, share: float) -> int:
    """The bucket of a prompt: the least of a fixed row of lengths that holds it.

    From one length of the row to the next is a step of ``share``, rounded down, but at least one token: padding is
    never more than ``share`` of the prompt.

    Args:
        tokens: of the prompt, at least 1.
        share: 0 for no padding.
    """
    if not share:
        return tokens
    length = 1
    while length < tokens:
        length += max(1, int(length * share))
    return length
