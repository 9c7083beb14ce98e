"""Where the parts of a vision-language model are, found from its structure and the library's conventions.

Parts are named by module path, so an anatomy is plain data: it keeps nothing alive and can be written in a config
(``model.layout``). ``None`` or an empty tuple means that the model has no such part, or that it was not found.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from chronostat.errors import ModelError

VISION_NAMES = (
    "vision_tower",
    "visual",
    "vision_model",
    "vision_encoder",
    "image_tower",
    "vision_backbone",
    "vision_embed_tokens",
)
PROJECTOR_NAME = re.compile(r"proj|connector|merger|align|adapter|resampler|qformer|embed_vision")


class SkippedBlock(nn.Module):
    """Stands in a list of decoder blocks where one was taken out."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Module paths inside one model.

    Attributes:
        blocks: the decoder blocks in the order they run; the list's path is ``block_list``.
        routers: modules inside the blocks whose integer ``top_k`` says how many experts a token gets; those of blocks
            that a knob has taken out do not exist for as long.
        encoders: text encoder of an encoder-decoder model.
    """

    vision: tuple[str, ...]
    projector: tuple[str, ...]
    encoders: tuple[str, ...]
    block_list: str
    blocks: tuple[str, ...]
    routers: tuple[str, ...]
    head: str | None


def find_anatomy(model: nn.Module, layout: Mapping[str, str | Sequence[str]] | None = None) -> Anatomy:
    """Find the parts of a model; ``layout`` overrides what is found by name of the part.

    Raises:
        ModelError: the decoder blocks were not found, or ``layout`` names a part or a path that does not exist.
    """
    given = _check_layout(model, layout or {})
    vision = given.get("vision") or _find_vision(model)
    block_list = (given.get("blocks") or (_find_block_list(model, vision),))[0]
    blocks = _block_paths(model, block_list)
    return Anatomy(
        vision=vision,
        projector=given.get("projector") or _find_projector(model, vision),
        encoders=_find_encoders(model),
        block_list=block_list,
        blocks=blocks,
        routers=tuple(path for block in blocks for path in _routers_in(model, block)),
        head=(given.get("head") or (_find_head(model),))[0],
    )


_known: WeakKeyDictionary[nn.Module, Anatomy] = WeakKeyDictionary()  # plain data: keeps no model alive


def anatomy_of(model: nn.Module, layout: Mapping[str, str | Sequence[str]] | None = None) -> Anatomy:
    """``find_anatomy``, remembered for each model; a ``layout`` once given counts for all later calls.

    Raises:
        ModelError: as ``find_anatomy``.
    """
    if layout or model not in _known:
        _known[model] = find_anatomy(model, layout)
    return _known[model]


def running_blocks(model: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """The decoder blocks that run, in order: those that no knob has taken out."""
    blocks = [model.get_submodule(path) for path in anatomy.blocks]
    return [block for block in blocks if not isinstance(block, SkippedBlock)]


def _check_layout(model: nn.Module, layout: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    known = ("vision", "projector", "blocks", "head")
    given: dict[str, tuple[str, ...]] = {}
    for part, paths in layout.items():
        if part not in known:
            raise ModelError(f"layout names an unknown part {part!r}; known parts: {', '.join(known)}")
        given[part] = (paths,) if isinstance(paths, str) else tuple(paths)
        for path in given[part]:
            try:
                model.get_submodule(path)
            except AttributeError:
                children = ", ".join(name for name, _ in model.named_modules() if name and name.count(".") < 2)
                raise ModelError(
                    f"layout: {part} = {path!r} is no module of {type(model).__name__}; there are: {children}"
                ) from None
    return given


def _block_paths(model: nn.Module, block_list: str) -> tuple[str, ...]:
    blocks = model.get_submodule(block_list)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ModelError(
            f"layout: blocks = {block_list!r} is a {type(blocks).__name__}; name the list (nn.ModuleList) that holds "
            "the decoder blocks"
        )
    return tuple(f"{block_list}.{name}" for name, _ in blocks.named_children())


def _path_of(model: nn.Module, part: object) -> str | None:
    return next((path for path, module in model.named_modules() if module is part and path), None)


def _library_part(model: nn.Module, look_up: str, **arguments: str) -> str | None:
    """Path of what one of the library's own look-ups finds; it returns the model itself where there is none."""
    try:
        found = getattr(model, look_up)(**arguments)
    except (AttributeError, NotImplementedError):  # plain modules, and models that do not implement the look-up
        return None
    return None if found is model else _path_of(model, found)


def _find_vision(model: nn.Module) -> tuple[str, ...]:
    path = _library_part(model, "get_encoder", modality="image")
    if path is None or path.split(".")[-1] not in VISION_NAMES:
        named = (path for path, _ in _by_depth(model) if path.split(".")[-1] in VISION_NAMES)
        path = next(named, None)
    return () if path is None else (path,)


def _find_projector(model: nn.Module, vision: tuple[str, ...]) -> tuple[str, ...]:
    """Parameterised siblings of the vision tower that are named like a projector, else such children inside it."""
    if not vision:
        return ()
    parent = vision[0].rpartition(".")[0]
    for root in (parent, vision[0]):
        found = tuple(
            path
            for name, child in model.get_submodule(root).named_children()
            if PROJECTOR_NAME.search(name)
            and f"{root}.{name}".lstrip(".") not in vision
            and any(True for _ in child.parameters())
            for path in _callable_paths(f"{root}.{name}".lstrip("."), child)
        )
        if found:
            return found
    return ()


def _callable_paths(path: str, module: nn.Module) -> list[str]:
    """The module's path, or those of its members where it is a list, which is never called itself."""
    if isinstance(module, nn.ModuleList):
        return [f"{path}.{name}" for name, _ in module.named_children()]
    return [path]


def _find_encoders(model: nn.Module) -> tuple[str, ...]:
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return ()
    path = _library_part(model, "get_encoder")
    return () if path is None else (path,)


def _find_block_list(model: nn.Module, vision: tuple[str, ...]) -> str:
    """The shallowest list of modules that is as long as the text config says, first inside the decoder."""
    config = getattr(model, "config", None)
    find_text_config = getattr(config, "get_text_config", None)
    count = getattr(find_text_config(decoder=True) if find_text_config else config, "num_hidden_layers", None)
    decoder = _library_part(model, "get_decoder")
    outside_vision = [
        (path, module)
        for path, module in _by_depth(model)
        if isinstance(module, nn.ModuleList) and not any(path == v or path.startswith(f"{v}.") for v in vision)
    ]
    fitting = [path for path, module in outside_vision if len(module) == count]
    inside_decoder = [path for path in fitting if decoder and path.startswith(f"{decoder}.")]
    if inside_decoder or fitting:
        return (inside_decoder or fitting)[0]
    candidates = ", ".join(f"{path} ({len(module)} modules)" for path, module in outside_vision) or "none"
    raise ModelError(
        f"cannot find the decoder blocks of {type(model).__name__}: no list of {count} modules "
        f"(num_hidden_layers); lists there are: {candidates}. Name the right one with model.layout.blocks"
    )


def _routers_in(model: nn.Module, block: str) -> Iterator[str]:
    for path, module in model.get_submodule(block).named_modules():
        if type(getattr(module, "top_k", None)) is int:
            yield f"{block}.{path}".rstrip(".")


def _find_head(model: nn.Module) -> str | None:
    return _library_part(model, "get_output_embeddings")


def _by_depth(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return sorted(((path, m) for path, m in model.named_modules() if path), key=lambda item: item[0].count("."))
