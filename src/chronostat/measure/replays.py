"""What a recorder learns of a replay, in which no hook inside of what is replayed fires."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from chronostat.measure.clock import Mark

EngineName = Literal["eager", "graph"]
Hook = TypeVar("Hook", bound=Callable[..., object])
_SEEN, _COLLECTS = "_chronostat_seen_in_replays", "_chronostat_collects_in_replays"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One replay of the decoder blocks of a model, or of a part beside them.

    Attributes:
        blocks: entry of the first block and exit of the last one, readable until the next replay; None: the hooks of
            the blocks fired as in an ordinary call.
        part: the vision tower or projector that was replayed, around which its own hooks fire; None: the blocks were.
        captured: why the call is slower than the next one will be: it captured; None: it did not.
    """

    blocks: tuple[Mark, Mark] | None = None
    part: nn.Module | None = None
    captured: str | None


_engines: WeakKeyDictionary[nn.Module, Callable[[], str | None]] = WeakKeyDictionary()
_listeners: WeakKeyDictionary[nn.Module, dict[object, Callable[[Replayed], None]]] = WeakKeyDictionary()


@contextmanager
def replaying(model: nn.Module, why_not: Callable[[], str | None]) -> Generator[None]:
    """A model runs by the engine "graph" meanwhile.

    Args:
        model: whose ``generate()`` is called.
        why_not: why the last call was not replayed as a whole; None: it was.
    """
    _engines[model] = why_not
    try:
        yield
    finally:
        del _engines[model]


def engine_of(model: nn.Module) -> EngineName:
    """What a model runs by now."""
    return "graph" if model in _engines else "eager"


def fell_back(model: nn.Module, *, replayed: bool) -> str | None:
    """Why the last call of a model that runs by the engine "graph" was eager; None: it was not, or there is none.

    Args:
        model: whose ``generate()`` was called.
        replayed: whether its prefill was seen to be replayed.
    """
    if model not in _engines:
        return None
    return _engines[model]() or (None if replayed else "its prefill did not go through the engine")


def seen_in_replays(hook: Hook) -> Hook:
    """Mark a hook, or a method in another's place, that need not run in a replay: who set it listens to replays too."""
    setattr(hook, _SEEN, True)
    return hook


def collecting_in_replays(hook: Hook, into: list[Any]) -> Hook:
    """Mark a hook that does nothing but add to a list; a replay adds what it would have added."""
    setattr(hook, _COLLECTS, into)
    return hook


def collected_by(hook: object) -> list[Any] | None:
    """The list of such a hook; None: it is another one."""
    return getattr(hook, _COLLECTS, None)


def is_seen_in_replays(hook: object) -> bool:
    """Whether a hook was marked."""
    return getattr(hook, _SEEN, False)


def listen(model: nn.Module, told: Callable[[Replayed], None]) -> Callable[[], None]:
    """Be told of each replay of a model.

    Returns:
        What ends it.
    """
    here = _listeners.setdefault(model, {})
    ticket = object()
    here[ticket] = told
    return lambda: here.pop(ticket, None) and None


def tell(model: nn.Module, replayed: Replayed) -> None:
    """Tell all listeners of a model."""
    for told in tuple(_listeners.get(model, {}).values()):
        told(replayed)
