"""Where tensors come from: colours that follow data through every operation of torch, in place and through views."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from enum import Flag, auto
from operator import or_
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,  # pyright: ignore[reportPrivateUsage] - torch has no public name for it
)


class Colour(Flag):
    """What a tensor was computed from."""

    NOTHING = 0
    IMAGE = auto()
    FEATURES = auto()  # what the vision tower returned
    TEXT = auto()


class Colours(TorchDispatchMode):
    """While entered, the result of an operation has the colours of all that went in.

    A colour belongs to the storage of a tensor, so that views share it and an operation in place gives it to what it
    writes into.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[StorageWeakRef, Colour] = {}  # equal for one storage, whose address they keep from others

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - passes through whatever the operation returns
        """One operation."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        colour = self.of((args, kwargs))
        if colour:
            self.give((result, list(_written(func, args, kwargs))), colour)
        return result

    def of(self, value: object) -> Colour:
        """The colours of all tensors in ``value`` together."""
        return functools.reduce(or_, (self._seen.get(key, Colour.NOTHING) for key in _storages(value)), Colour.NOTHING)

    def give(self, value: object, colour: Colour) -> None:
        """Add colours to all tensors in ``value``."""
        for key in _storages(value):
            self._seen[key] = self._seen.get(key, Colour.NOTHING) | colour

    def leave(self) -> bool:
        """Leave before the end of the ``with``; not where another mode was entered since.

        Returns:
            Whether it was left.
        """
        innermost = _get_current_dispatch_mode() is self
        if innermost:
            self.__exit__(None, None, None)
        return innermost


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested lists, mappings and objects that hold their results in fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif dataclasses.is_dataclass(value):
        yield from tensors_in(vars(value))


def _storages(value: object) -> Iterator[StorageWeakRef]:
    for tensor in tensors_in(value):
        # sparse tensors and quantised weights of some libraries have no storage; no image is in one
        with contextlib.suppress(NotImplementedError):
            yield StorageWeakRef(tensor.untyped_storage())


def _written(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[object]:
    """The arguments that an operation writes into."""
    schema = func._schema  # pyright: ignore[reportPrivateUsage] - torch has no public name for it
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[index] if index < len(args) else kwargs.get(argument.name)
