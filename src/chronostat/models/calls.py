"""Work that belongs to a ``generate()`` and is done before the model's own begins, for those who watch its calls."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

Around = Callable[[dict[str, Any]], AbstractContextManager[object]]

_watchers: WeakKeyDictionary[nn.Module, list[Around]] = WeakKeyDictionary()


@contextmanager
def watching_calls(model: nn.Module, around: Around) -> Generator[None]:
    """Be entered around the whole of a call, for the length of the ``with``.

    Args:
        model: whose ``generate()`` is watched.
        around: from the call's arguments to what is entered; it has to know that it is open when ``generate()`` comes.
    """
    here = _watchers.setdefault(model, [])
    here.append(around)
    try:
        yield
    finally:
        here.remove(around)


@contextmanager
def whole_call(model: nn.Module, arguments: dict[str, Any]) -> Generator[None]:
    """Around a ``generate()`` and what is done for it before."""
    with ExitStack() as entered:
        for around in tuple(_watchers.get(model, ())):
            entered.enter_context(around(arguments))
        yield
