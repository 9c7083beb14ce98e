"""A model of the zoo as it would be built without some of its decoder blocks, and requests to compare them on."""

import copy

import torch
from torch import nn

from chronostat.models.anatomy import anatomy_of
from chronostat.models.locate import ancestors

FIRST_SPECIAL_ID = 100  # image, video, start and end of them
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "decoder_layers", "num_decoder_layers", "n_layer")


def without_blocks(model, indices):
    """Blocks removed, the others renumbered, fewer in the config and in each of its lists of all blocks."""
    smaller = copy.deepcopy(model)
    for index in sorted(indices, reverse=True):
        _remove(smaller, anatomy_of(model).block_list, index)
    return smaller


def left_padded(batch, padding):
    """With padding before the prompt, the mask matters, whose length is read from a layer of the cache."""
    if not padding or "input_ids" not in batch:
        return batch
    ids = batch["input_ids"]
    batch = {"attention_mask": torch.ones_like(ids), **batch}
    widened = {}
    for key, value in batch.items():
        if value.shape == ids.shape:
            widened[key] = nn.functional.pad(value, (padding, 0))
        elif key in {"cross_attention_mask", "image_attention_mask", "bbox"}:  # [1, tokens, ...]
            widened[key] = nn.functional.pad(value, (0, 0) * (value.ndim - 2) + (padding, 0))
    return {**batch, **widened}


def text_only(batch):
    """The same request without its image."""
    ids = batch["input_ids"]
    return {"input_ids": ids.where(ids < FIRST_SPECIAL_ID, 5), "attention_mask": torch.ones_like(ids)}


def _remove(smaller, block_list, index):
    blocks = smaller.get_submodule(block_list)
    count = len(blocks)
    kept = [block for position, block in enumerate(blocks) if position != index]
    _renumber(kept, index)
    owner, name = smaller.get_submodule(block_list.rpartition(".")[0]), block_list.rpartition(".")[2]
    _put(owner, name, nn.ModuleList(kept))
    _drop_embeddings(owner, index, count)
    for config in _decoder_configs(smaller, block_list):
        _shrink(config, index, count)


def _drop_embeddings(owner, index, count):
    """Where each block has embeddings of its own (Gemma 4): they lie side by side in one matrix."""
    width = getattr(getattr(owner, "config", None), "hidden_size_per_layer_input", None)
    if not width:
        return
    for name, axis in (("embed_tokens_per_layer", 1), ("per_layer_model_projection", 0)):
        module = getattr(owner, name)
        kept = [i for i in range(count * width) if i // width != index]
        module.weight = nn.Parameter(module.weight.index_select(axis, torch.tensor(kept)))


def _renumber(kept, index):
    """A block's own index, its attention's, and so on: each module once, though one may be in several blocks."""
    for module in {id(module): module for block in kept for module in block.modules()}.values():
        if isinstance(getattr(module, "layer_idx", None), int) and module.layer_idx > index:
            module.layer_idx -= 1


def _put(owner, name, blocks):
    if isinstance(owner, nn.ModuleDict):
        owner[name] = blocks
    else:
        setattr(owner, name, blocks)


def _decoder_configs(model, block_list):
    inside = [model.get_submodule(path) for path in (block_list, *ancestors(block_list))]
    configs = [model.config.get_text_config(decoder=True)]
    configs += [config for module in inside if (config := getattr(module, "config", None)) is not None]
    configs += [
        config for block in model.get_submodule(block_list).modules() if (config := getattr(block, "config", None))
    ]
    return list({id(config): config for config in configs}.values())


def _shrink(config, index, count):
    names = [name for name in LAYER_COUNTS if getattr(config, name, None) == count]
    if not names:
        return
    own = vars(config)
    for name, value in own.items():
        if isinstance(value, list | tuple) and len(value) == count and not name.startswith("_"):
            own[name] = type(value)(item for position, item in enumerate(value) if position != index)
    if own.get("cross_attention_layers"):  # positions, not one item for each block
        own["cross_attention_layers"] = [i - (i > index) for i in config.cross_attention_layers if i != index]
    for name in names:
        own[config.attribute_map.get(name, name)] = count - 1
