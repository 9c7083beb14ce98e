"""What cannot be replayed, each in a few words: of a model, and of one call of its ``generate()``."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation.configuration_utils import GenerationMode

from chronostat.engine.state import skipped_hooks
from chronostat.errors import ModelError
from chronostat.models.anatomy import anatomy_of
from chronostat.models.compiled import is_compiled

_ONE_BY_ONE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def why_eager(model: PreTrainedModel) -> str | None:
    """Why no call of this model can be replayed; None: it seems that it can, and each call is looked at."""
    return next(_objections_to(model), None)


def decoder_of(model: nn.Module) -> nn.Module:
    """The module that holds the list of decoder blocks: what is replayed."""
    return model.get_submodule(anatomy_of(model).block_list.rpartition(".")[0])


def _objections_to(model: PreTrainedModel) -> Iterator[str]:
    if model.config.is_encoder_decoder:
        yield "an encoder-decoder keeps two caches"
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        yield f"it is spread over {', '.join(sorted(devices))}"
    try:
        decoder = decoder_of(model)
    except ModelError as error:
        yield str(error)
        return
    compiled = next((path for path, module in model.named_modules() if is_compiled(module)), None)
    if compiled is not None:
        yield f"{compiled or type(model).__name__} was compiled (torch.compile)"
    taken = inspect.signature(decoder.forward).parameters
    if not {"inputs_embeds", "past_key_values"} <= taken.keys():
        yield f"{type(decoder).__name__} takes no inputs_embeds and past_key_values"
    config = getattr(decoder, "config", None)
    if getattr(config, "cross_attention_layers", None):
        yield "some of its blocks attend to the image, whose keys are not counted in tokens"
    attention = getattr(config, "_attn_implementation", None)
    if attention != "sdpa":
        yield f"its decoder attends by {attention!r}; load it with attn_implementation='sdpa'"
    library: Any = model
    if library._supports_default_dynamic_cache():  # else each call is looked at
        yield from _objections_to_cache(DynamicCache(config=model.config.get_text_config(decoder=True)))


def objection_to_call(
    decoder: nn.Module,
    config: GenerationConfig,
    arguments: Mapping[str, Any],
    mode: GenerationMode,
    requests: int,
) -> str | None:
    """Why one call is not replayed.

    Args:
        decoder: see ``decoder_of``.
        config: of the call.
        arguments: of the model, with the cache that the library made for it.
        mode: of the call.
        requests: in the batch.
    """
    return next(_objections_to_call(decoder, config, arguments, mode, requests), None)


def _objections_to_call(
    decoder: nn.Module,
    config: GenerationConfig,
    arguments: Mapping[str, Any],
    mode: GenerationMode,
    requests: int,
) -> Iterator[str]:
    if mode not in _ONE_BY_ONE or config.is_assistant:
        yield f"{mode.value} does not add one token to one sequence at a time"
    if requests * (config.num_return_sequences or 1) != 1:
        yield f"a batch of {requests * (config.num_return_sequences or 1)} sequences"
    if config.prefill_chunk_size is not None:
        yield f"prefill_chunk_size={config.prefill_chunk_size}"
    if config.return_dict_in_generate:
        yield "return_dict_in_generate hands out the cache"
    yield from _objections_to_cache(arguments.get("past_key_values"))
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and not bool((mask == 1).all()):
        yield "attention_mask masks some of the prompt"
    if decoder.training or torch.is_grad_enabled():
        yield "the model is being trained"
    for path, _ in skipped_hooks(decoder.named_modules()):
        yield f"a forward hook on {path} would not run"


def _objections_to_cache(cache: object) -> Iterator[str]:
    if cache is None:
        yield "no cache is used"
    elif type(cache) is not DynamicCache or getattr(cache, "_is_user_defined", False) or cache.offloading:
        yield f"a {type(cache).__name__} was asked for"
    elif not cache.layers:
        yield "its cache says nothing of its layers"
    else:
        others = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
        if others:
            yield f"layers of its cache are a {', '.join(others)}: a sliding window, linear attention or the like"
