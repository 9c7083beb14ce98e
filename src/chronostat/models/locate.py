"""Where the parts are: rules from structure and from the library's conventions, none for a single architecture.

Every rule returns module paths, or nothing where it does not apply. What the library itself looks up (``get_encoder``,
``get_decoder``, ``get_output_embeddings``, ``main_input_name``) comes before what only a name suggests.
"""

import re
from collections.abc import Iterator

from torch import nn

VISION_NAMES = (  # the library's own (PreTrainedModel.get_encoder), then those of its older models and of Molmo
    "vision_tower",
    "visual",
    "vision_model",
    "vision_encoder",
    "image_tower",
    "image_encoder",
    "vision_backbone",
    "vqmodel",
)
PIXEL_INPUTS = ("pixel_values", "flattened_patches", "image_patches")
PROJECTOR_NAME = re.compile(r"proj|connector|merger|align|adapter|resampler|qformer|embed_vision|visual_embed")
TOWER_NAME = re.compile(r"vision|visual|image")  # of further towers beside the first
PATCH_EMBEDDER_NAME = re.compile(r"embed_vision|vision_embed")  # of models without a vision tower
OTHER_PURPOSE = re.compile(r"^(audio|speech|video|text|generation)")  # a projector, but not from image to text


def find_vision(model: nn.Module) -> tuple[str, ...]:
    """The vision tower by the library's look-up or by name, else the module beside the decoder that takes pixels.

    Further towers beside it (for another resolution) follow.
    """
    path = library_part(model, "get_encoder", modality="image")
    if path is None or _last(path) not in VISION_NAMES:
        named = (path for path, _ in by_depth(model) if _last(path) in VISION_NAMES)
        path = next(named, None) or next(_takers_of_pixels(model), None)
    if path is None:
        return ()
    beside = _parts_named(model, _parent(path), TOWER_NAME)
    return (path, *(other for other in beside if other != path and not PROJECTOR_NAME.search(_last(other))))


def _takers_of_pixels(model: nn.Module) -> Iterator[str]:
    decoder = library_part(model, "get_decoder")
    for path, module in by_depth(model):
        takes_pixels = getattr(module, "main_input_name", None) in PIXEL_INPUTS
        if takes_pixels and decoder and not within(path, decoder) and not within(decoder, path):
            yield path


def find_projector(model: nn.Module, vision: tuple[str, ...], block_list: str) -> tuple[str, ...]:
    """Siblings of the vision tower that are named like a projector, else such children inside it.

    Without a tower, what turns patches into embeddings beside the decoder.
    """
    if vision:
        places = [(_parent(vision[0]), PROJECTOR_NAME), (vision[0], PROJECTOR_NAME)]
    else:
        places = [(path, PATCH_EMBEDDER_NAME) for path in ancestors(block_list)]
    for place, name in places:
        projector = tuple(path for path in _parts_named(model, place, name) if path not in vision)
        if projector:
            return called_paths(model, projector)
    return ()


def find_encoders(model: nn.Module) -> tuple[str, ...]:
    """The encoder of an encoder-decoder model."""
    if not getattr(config_of(model), "is_encoder_decoder", False):
        return ()
    path = library_part(model, "get_encoder")
    return () if path is None else (path,)


def config_of(model: nn.Module) -> object:
    """The configuration of the model, or of the first model inside an object that only wraps one."""
    return next((each.config for each in model.modules() if getattr(each, "config", None) is not None), None)


def find_routers(model: nn.Module, block: str) -> Iterator[str]:
    """Modules inside a block that have an integer ``top_k``."""
    for path, module in model.get_submodule(block).named_modules():
        if type(getattr(module, "top_k", None)) is int:
            yield f"{block}.{path}".rstrip(".")


def find_head(model: nn.Module, block_list: str) -> str | None:
    """The library's output embeddings, of the model or of the language model inside it."""
    for path in reversed(ancestors(block_list)):
        head = library_part(model.get_submodule(path), "get_output_embeddings")
        if head is not None:
            return f"{path}.{head}".lstrip(".")
    return None


def called_paths(model: nn.Module, paths: tuple[str, ...]) -> tuple[str, ...]:
    """The same modules, a list replaced by its members: a list is never called itself."""
    return tuple(
        called
        for path in paths
        for called in (_children(model, path) if isinstance(module_of(model, path)[0], nn.ModuleList) else [path])
    )


def ancestors(path: str) -> list[str]:
    """The modules that hold ``path``, from the nearest up to the model itself (the empty path)."""
    found: list[str] = []
    while path:
        path = _parent(path)
        found.append(path)
    return found


def by_depth(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules but the model itself, the shallowest first."""
    return sorted(((path, m) for path, m in model.named_modules() if path), key=lambda item: item[0].count("."))


def library_part(model: nn.Module, look_up: str, **arguments: str) -> str | None:
    """Path of what one of the library's own look-ups finds; it returns the model itself where there is none."""
    try:
        found = getattr(model, look_up)(**arguments)
    except (AttributeError, NotImplementedError):
        # how plain modules, and models that do not implement a look-up or lack what it looks for, say that it finds
        # nothing; structure decides then, and what that does not find either is an error that lists candidates
        return None
    return next((path for path, module in model.named_modules() if module is found and path), None)


def _children(model: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}".lstrip(".") for name, _ in model.get_submodule(path).named_children()]


def _parts_named(model: nn.Module, place: str, name: re.Pattern[str]) -> list[str]:
    """Children of a module that have weights and such a name, but not one of another purpose."""
    return [
        path
        for path in _children(model, place)
        if name.search(_last(path))
        and not OTHER_PURPOSE.match(_last(path))
        and any(True for _ in model.get_submodule(path).parameters())
    ]


def within(path: str, other: str) -> bool:
    """Whether ``path`` is ``other`` or inside it; everything is inside the model (the empty path)."""
    return not other or path == other or path.startswith(f"{other}.")


def module_of(model: nn.Module, entry: str) -> tuple[nn.Module, str | None]:
    """The module at a path, or the module and the method where the path ends with the name of a method.

    Raises:
        AttributeError: there is neither.
    """
    try:
        return model.get_submodule(entry), None
    except AttributeError:
        module, method = model.get_submodule(_parent(entry)), _last(entry)
        if not callable(getattr(module, method, None)):
            raise
        return module, method


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _last(path: str) -> str:
    return path.rpartition(".")[2]
