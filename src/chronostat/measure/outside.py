"""Modules with weights that belong to no stage: none may run before the first token while no stage is open."""

from collections.abc import Iterable, Iterator

from torch import nn

from chronostat.measure.compiled import is_compiled
from chronostat.models.anatomy import Anatomy
from chronostat.models.locate import library_part, within


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
