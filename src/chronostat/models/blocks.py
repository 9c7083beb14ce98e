"""The decoder blocks of a model: where their list is, which of them run, and in which order."""

from collections.abc import Sequence

from torch import nn

from chronostat.errors import ModelError
from chronostat.models.locate import by_depth, config_of, library_part, within

LAYER_COUNTS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layers")  # first two: encoder-decoders


class SkippedBlock(nn.Module):
    """Stands in a list of decoder blocks where one was taken out."""


def find_block_list(model: nn.Module, encoders: tuple[str, ...]) -> str:
    """The shallowest list of modules that is as long as the text config says, first inside the decoder.

    Args:
        model: the model.
        encoders: of images and text; the blocks are in none of them.

    Raises:
        ModelError: there is none.
    """
    count_name, count = _layer_count(model)
    decoder = library_part(model, "get_decoder")
    outside = [
        (path, module)
        for path, module in by_depth(model)
        if isinstance(module, nn.ModuleList) and not any(within(path, encoder) for encoder in encoders)
    ]
    fitting = [path for path, module in outside if len(module) == count]
    inside_decoder = [path for path in fitting if decoder and within(path, decoder)]
    if inside_decoder or fitting:
        return (inside_decoder or fitting)[0]
    candidates = ", ".join(f"{path} ({len(module)} modules)" for path, module in outside) or "none"
    raise ModelError(
        f"cannot find the decoder blocks of {type(model).__name__}: no list of {count} modules "
        f"({count_name}); lists there are: {candidates}. Name the right one with model.layout.blocks or --layout"
    )


def _layer_count(model: nn.Module) -> tuple[str, int | None]:
    config = config_of(model)
    find_text_config = getattr(config, "get_text_config", None)
    text_config = find_text_config(decoder=True) if find_text_config else config
    for name in LAYER_COUNTS:
        count = getattr(text_config, name, None)
        if isinstance(count, int):
            return name, count
    return "num_hidden_layers", None


def block_paths(model: nn.Module, block_list: str) -> tuple[str, ...]:
    """The decoder blocks in the order they run.

    Raises:
        ModelError: ``block_list`` is no list that holds modules.
    """
    blocks = model.get_submodule(block_list)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ModelError(
            f"layout: blocks = {block_list!r} is a {type(blocks).__name__}; name the list (nn.ModuleList) that holds "
            "the decoder blocks"
        )
    return tuple(f"{block_list}.{name}" for name, _ in blocks.named_children())


def running_blocks(model: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """The decoder blocks that run, in order: those that no knob has taken out; ``paths`` are ``Anatomy.blocks``."""
    blocks = [model.get_submodule(path) for path in paths]
    return [block for block in blocks if not isinstance(block, SkippedBlock)]
