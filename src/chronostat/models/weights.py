"""What a knob has to leave as it was: weights bit for bit, and all else that hangs on a model or its processor."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.models.storage import plain_tensors

_COLUMNS = 1021  # a prime: equal numbers that change places change a sum of columns
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = (int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")

State = Mapping[tuple[str, str], object]


class Same:
    """An object that is equal to itself only."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)

    def __repr__(self) -> str:
        return type(self._value).__name__


@torch.no_grad()
def weights_checksum(model: nn.Module) -> Mapping[str, int]:
    """A number for the bits of each weight and stored buffer, by name; each is read once, where it lies.

    A weight that is made of several tensors, as quantised ones are, has a number for each.

    Raises:
        ModelError: see ``plain_tensors``.
    """
    sums = {name: _checksum(weight) for name, weight in plain_tensors(model).items() if weight.numel()}
    read: dict[str, int] = {}
    for device in {each.device for each in sums.values()}:  # small parts may lie on the CPU beside a model on a card
        names = [name for name, each in sums.items() if each.device == device]
        read.update(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    return {name: read[name] for name in sums}


def _checksum(weight: Tensor) -> Tensor:
    """Sum of the bits as integers, weighted by column, modulo 2 ** 64.

    The factors are odd, so that one changed bit, the highest too, always changes the sum.
    """
    bits = _words(weight.detach().contiguous().flatten())
    whole = bits.numel() - bits.numel() % _COLUMNS
    columns = bits[:whole].view(-1, _COLUMNS).sum(dim=0, dtype=torch.int64)
    rest = bits[whole:].long()
    factors = torch.arange(1, 2 * _COLUMNS, 2, device=bits.device)
    return (columns * factors).sum() + (rest * factors[: rest.numel()]).sum() * (_COLUMNS + 2)


def _words(flat: Tensor) -> Tensor:
    """The bits as integers, as wide as they can be: that is several times faster."""
    size = flat.element_size()
    fits = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64 if fits else _BITS[size])


def state_of(model: PreTrainedModel, processor: ProcessorMixin | None) -> State:
    """Modules, attributes, hooks and configurations, by module path and name; tensors by identity, not by value."""
    seen: dict[int, object] = {}
    state: dict[tuple[str, str], object] = {}
    for path, module in model.named_modules():
        state[path, "class"] = Same(type(module))
        for name, value in _attributes(module):
            state[path, name] = _frozen(value, seen)
    parts = {"processor": processor, "image_processor": getattr(processor, "image_processor", None)}
    for part, holder in parts.items():
        for name, value in vars(holder).items() if holder is not None else ():
            state[f"({part})", name] = _frozen(value, seen)
    return state


def first_difference(before: State, after: State) -> tuple[str, str] | None:
    """Where two states differ first, as module path and name; None where they are equal."""
    return next((key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)), None)


def differences(before: State, after: State) -> set[tuple[str, str]]:
    """All places where two states differ."""
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def without_memory(state: State) -> State:
    """The part that no call changes: classes, modules, weights by identity, hooks and configurations.

    Some models keep something of the last request in an attribute.
    """
    lasting = {"class", "_modules", "_parameters", "config", "generation_config", *_HOOKS}
    return {key: value for key, value in state.items() if key[1] in lasting or key[0].startswith("(")}


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name in _HOOKS:
            yield name, tuple(cast("Mapping[int, object]", value))  # a hook's number is never given again
        else:
            yield name, value


def _frozen(value: Any, seen: dict[int, object]) -> object:  # noqa: ANN401 - attributes hold anything
    """What is compared of a value: plain data by value, configurations by what they hold, all else by identity."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | set):
        return (type(value).__name__, *(_frozen(item, seen) for item in cast("list[object]", value)))
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return ("dict", *((str(name), _frozen(item, seen)) for name, item in items))
    if hasattr(value, "to_dict") and not isinstance(value, nn.Module):
        if id(value) not in seen:
            seen[id(value)] = Same(value)  # a configuration may hold what holds it
            held = ((name, _frozen(item, seen)) for name, item in vars(value).items())
            seen[id(value)] = (Same(value), *held)
        return seen[id(value)]
    return Same(value)
