"""Where the parts of a vision-language model are, found from its structure and the library's conventions.

Parts are named by module path, so an anatomy is plain data: it keeps nothing alive and can be written in a config
(``model.layout``). ``None`` or an empty tuple means that the model has no such part, or that it was not found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from chronostat.errors import ModelError
from chronostat.models.blocks import block_paths, find_block_list
from chronostat.models.locate import (
    ancestors,
    called_paths,
    find_encoders,
    find_head,
    find_projector,
    find_routers,
    find_vision,
    module_of,
)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Module paths inside one model.

    Attributes:
        vision: vision towers; a path may end with a method, where the module itself is never called. So may that of a
            projector.
        blocks: the decoder blocks in the order they run; the list's path is ``block_list``.
        routers: modules inside the blocks whose integer ``top_k`` says how many experts a token gets; those of blocks
            that a knob has taken out do not exist for as long.
        encoders: text encoder of an encoder-decoder model.
        encode: method in which tower and projector run before the first forward, where a call has shown one.
        given: the parts that ``layout`` named.
        doubts: what a call has shown that speaks against these parts.
    """

    vision: tuple[str, ...]
    projector: tuple[str, ...]
    encoders: tuple[str, ...]
    block_list: str
    blocks: tuple[str, ...]
    routers: tuple[str, ...]
    head: str | None
    encode: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    doubts: tuple[str, ...] = ()


def find_anatomy(model: nn.Module, layout: Mapping[str, str | Sequence[str]] | None = None) -> Anatomy:
    """Find the parts of a model; ``layout`` overrides what is found by name of the part.

    Raises:
        ModelError: the decoder blocks were not found, or ``layout`` names a part or a path that does not exist, or a
            module for one part that is or holds another.
    """
    given = _check_layout(model, layout or {})
    found = find_vision(model)
    vision = given.get("vision", found)
    encoders = find_encoders(model)
    # a wrong tower must not move the blocks: then what is wrong could not be told
    block_list = given["blocks"][0] if "blocks" in given else find_block_list(model, (found or vision) + encoders)
    blocks = block_paths(model, block_list)
    anatomy = Anatomy(
        vision=called_paths(model, vision),
        projector=called_paths(model, given["projector"])
        if "projector" in given
        else find_projector(model, vision, block_list),
        encoders=encoders,
        block_list=block_list,
        blocks=blocks,
        routers=tuple(path for block in blocks for path in find_routers(model, block)),
        head=next(iter(given["head"]), None) if "head" in given else find_head(model, block_list),
        given=frozenset(given),
    )
    if given:
        _require_apart(anatomy)
        _require_outside_of_decoder(anatomy, found)
    return anatomy


_known: WeakKeyDictionary[nn.Module, Anatomy] = WeakKeyDictionary()  # plain data: keeps no model alive


def anatomy_of(model: nn.Module, layout: Mapping[str, str | Sequence[str]] | None = None) -> Anatomy:
    """``find_anatomy``, remembered for each model; a ``layout`` once given counts for all later calls.

    Raises:
        ModelError: as ``find_anatomy``.
    """
    if layout or model not in _known:
        _known[model] = find_anatomy(model, layout)
    return _known[model]


def remember(model: nn.Module, anatomy: Anatomy) -> None:
    """What ``anatomy_of`` returns from now on."""
    _known[model] = anatomy


def _check_layout(model: nn.Module, layout: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    known = ("vision", "projector", "blocks", "head")
    given: dict[str, tuple[str, ...]] = {}
    for part, paths in layout.items():
        if part not in known:
            raise ModelError(f"layout names an unknown part {part!r}; known parts: {', '.join(known)}")
        given[part] = (paths,) if isinstance(paths, str) else tuple(paths)
        if part == "blocks" and len(given[part]) != 1:
            raise ModelError(f"layout: blocks = {list(given[part])} must be the path of one list of decoder blocks")
        for path in given[part]:
            try:
                _require_part(model, part, path)
            except AttributeError:
                children = ", ".join(name for name, _ in model.named_modules() if name and name.count(".") < 2)
                raise ModelError(
                    f"layout: {part} = {path!r} is no module of {type(model).__name__}; there are: {children}"
                ) from None
    return given


def _require_part(model: nn.Module, part: str, path: str) -> None:
    """Accept a module, and for what encodes images also a method of one.

    Raises:
        AttributeError: there is no such module.
    """
    if part in {"vision", "projector"}:
        module_of(model, path)
    else:
        model.get_submodule(path)


def _require_apart(anatomy: Anatomy) -> None:
    """What is one part of the time cannot be another as well: it would count twice, or the second come out as 0."""
    encoding = {"vision": anatomy.vision, "projector": anatomy.projector}
    decoding = {"blocks": anatomy.block_list, "head": anatomy.head}
    pairs = [
        (name, path, other, place)
        for name, paths in encoding.items()
        for path in paths
        for other, place in decoding.items()
        if place is not None
    ]
    pairs += [("projector", path, "vision", tower) for path in anatomy.projector for tower in anatomy.vision]
    for name, path, other, place in pairs:
        holds = path in {place, *ancestors(place)}
        if holds or (other in decoding and place in ancestors(path)):  # a projector may lie in the tower
            raise ModelError(
                f"layout: {name} = {path!r} {'is or holds' if holds else 'lies in'} {other} = {place!r}, so that the "
                "time of one would count as that of the other; name the module of each part with layout"
            )


def _require_outside_of_decoder(anatomy: Anatomy, found: Sequence[str]) -> None:
    """Where the tower lies beside the module that holds the blocks, nothing inside that module encodes images."""
    decoder = anatomy.block_list.rpartition(".")[0]
    if not found or any(decoder in ancestors(path) for path in found):
        return
    for name, paths in (("vision", anatomy.vision), ("projector", anatomy.projector)):
        for path in paths:
            if decoder in ancestors(path):
                raise ModelError(
                    f"layout: {name} = {path!r} lies in {decoder!r} with the decoder blocks, but {', '.join(found)} "
                    f"encodes the images, beside it; name the module of {name}, or leave it out of layout"
                )
