"""Modules with weights that belong to no stage: none may run before the first token while no stage is open."""

import functools
from collections.abc import Callable, Iterable, Iterator

from torch import nn

from chronostat.measure.replays import seen_in_replays
from chronostat.models.anatomy import Anatomy
from chronostat.models.compiled import is_compiled
from chronostat.models.locate import library_part, within


class OutsideHooks:
    """Embedding the text and the head are prefill wherever they run; nothing else with weights may run alone.

    A replay runs inside the forward, where a stage is open, so none of them has anything to notice there.

    Args:
        alone: whether no stage is open before the first token.
        begin: opens the stage of what is prefill and runs alone.
        end: closes it.

    Attributes:
        seen: paths of other modules that ran alone.
    """

    def __init__(self, *, alone: Callable[[], bool], begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._alone = alone
        self._begin = begin
        self._end = end
        self.seen: dict[str, None] = {}

    def install(self, model: nn.Module, anatomy: Anatomy) -> Iterator[Callable[[], None]]:
        """Set the hooks; what takes them out comes one by one."""
        text = text_parts(model, anatomy)
        for path, module in outside_parts(model, anatomy):
            if path in text or isinstance(module, nn.Embedding):
                yield from self._count(module)
            else:
                notice = seen_in_replays(functools.partial(self._notice, path))
                yield module.register_forward_pre_hook(notice).remove

    def _notice(self, path: str, *_: object) -> None:
        if self._alone():
            self.seen[path] = None

    def _count(self, module: nn.Module) -> Iterator[Callable[[], None]]:
        begun: list[bool] = []

        def enter(*_: object) -> None:
            begun.append(self._alone())
            if begun[-1]:
                self._begin()

        def leave(*_: object) -> None:
            if begun and begun.pop():
                self._end()

        yield module.register_forward_pre_hook(seen_in_replays(enter), prepend=True).remove
        yield module.register_forward_hook(seen_in_replays(leave), always_call=True).remove


def outside_parts(model: nn.Module, anatomy: Anatomy) -> Iterator[tuple[str, nn.Module]]:
    """Modules with weights that neither are, lie in nor hold a part, and where hooks fire; outer ones first."""
    parts = (*anatomy.vision, *anatomy.projector, *anatomy.encoders, anatomy.block_list)
    return _beside("", model, parts)


def _beside(path: str, module: nn.Module, parts: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        place = f"{path}.{name}".lstrip(".")
        if place in parts or is_compiled(child):
            continue
        if not any(within(part, place) for part in parts) and _has_weights(child):
            yield place, child
        yield from _beside(place, child, parts)


def _has_weights(module: nn.Module) -> bool:
    """Whether a checkpoint holds something for it; some quantised layers keep their weights in buffers."""
    return any(True for _ in module.parameters()) or bool(module.state_dict(keep_vars=True))


def text_parts(model: nn.Module, anatomy: Anatomy) -> frozenset[str]:
    """Modules whose work belongs to the prefill wherever it runs: the embedding of the text, and the head."""
    return frozenset(path for path in (library_part(model, "get_input_embeddings"), anatomy.head) if path)


def outermost(paths: Iterable[str]) -> list[str]:
    """Those that lie in no other one."""
    paths = list(paths)
    return [path for path in paths if not any(within(path, other) for other in paths if other != path)]
