"""What a recorder learns of a replay, in which no hook of a decoder block fires."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from chronostat.measure.clock import Mark

Hook = TypeVar("Hook", bound=Callable[..., object])
_SEEN = "_chronostat_seen_in_replays"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One replay of the decoder blocks of a model.

    Attributes:
        blocks: entry of the first block and exit of the last one, readable until the next replay; None: the hooks of
            the blocks fired as in an ordinary call.
        captured: why the call is slower than the next one will be: it captured; None: it did not.
    """

    blocks: tuple[Mark, Mark] | None
    captured: str | None


_listeners: WeakKeyDictionary[nn.Module, dict[object, Callable[[Replayed], None]]] = WeakKeyDictionary()


def seen_in_replays(hook: Hook) -> Hook:
    """Mark a hook, or a method in another's place, that need not run in a replay: who set it listens to replays too."""
    setattr(hook, _SEEN, True)
    return hook


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
