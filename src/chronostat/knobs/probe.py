"""A short forward through the decoder blocks of a model, so that knobs can see what the blocks take, give and keep.

The blocks run inside the innermost module that can be called with a few text tokens, so that an image is needed only
where every module around the blocks asks for one; a blank one then.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.errors import KnobError
from chronostat.models.anatomy import anatomy_of
from chronostat.models.blocks import running_blocks
from chronostat.models.locate import ancestors

PROBED_TOKENS = 7  # a number that no other dimension of the hidden states is likely to have
_ENCODER_WIDTHS = ("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", "d_model")
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NameError, AssertionError)
"""What a model raises that is called in a way it was not made for."""

_entries: WeakKeyDictionary[nn.Module, tuple[str, Mapping[str, Any]]] = WeakKeyDictionary()


def block_runner(model: PreTrainedModel) -> Callable[[], None]:
    """What runs the decoder blocks once on ``PROBED_TOKENS`` tokens; it raises whatever the model raises.

    How that is done is found out once for each model, by trying, so hooks that count are set afterwards.

    Raises:
        KnobError: no module around the blocks can be called like this; says why not.
    """
    if model not in _entries:
        _entries[model] = _find_entry(model)
    path, arguments = _entries[model]
    return partial(_call, model, model.get_submodule(path), arguments)


@torch.no_grad()
def _call(model: PreTrainedModel, module: nn.Module, arguments: Mapping[str, Any]) -> None:
    module(
        **{name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    )


def _find_entry(model: PreTrainedModel) -> tuple[str, dict[str, Any]]:
    reasons: list[str] = []
    for path in ancestors(anatomy_of(model).block_list):
        module = model.get_submodule(path)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        for arguments in _attempts(module, model):
            reason = _failure(model, module, arguments)
            if reason is None:
                return path, arguments
            reasons.append(f"{type(module).__name__}: {reason}")
    raise KnobError(
        f"cannot run the blocks of {type(model).__name__} on a few tokens: {'; '.join(dict.fromkeys(reasons))}"
    )


def _failure(model: PreTrainedModel, module: nn.Module, arguments: Mapping[str, Any]) -> str | None:
    """Why a call does not run the blocks; None if it does."""
    calls: list[object] = []

    def note(*output: object) -> None:
        calls.append(output)

    handles = [block.register_forward_hook(note) for block in running_blocks(model, anatomy_of(model).blocks)]
    try:
        _call(model, module, arguments)
    except FAILURES as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    finally:
        for handle in handles:
            handle.remove()
    return None if calls else "the blocks are not called as modules"


def _attempts(module: nn.Module, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Arguments to call a module with: states of an encoder first where it takes them, a blank image at last."""
    ids = torch.zeros(1, PROBED_TOKENS, dtype=torch.long)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True}
    accepted = inspect.signature(module.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    if not takes_any:
        arguments = {name: value for name, value in arguments.items() if name in accepted}
    if "is_decoder" in accepted:
        arguments["is_decoder"] = True
    if "encoder_hidden_states" in accepted:
        config = getattr(module, "config", model.config)
        widths = (getattr(config, name, None) for name in _ENCODER_WIDTHS)
        for width in dict.fromkeys(width for width in widths if isinstance(width, int)):
            states = torch.zeros(1, PROBED_TOKENS + 1, width, dtype=model.dtype)
            yield {**arguments, "encoder_hidden_states": states}
    yield arguments
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    if "pixel_values" in accepted and isinstance(side, int):
        for images in ((1,), (1, 1)):  # with an axis for several images, or without
            blank = {"pixel_values": torch.zeros(*images, 3, side, side, dtype=model.dtype)}
            if "image_attention_mask" in accepted:
                blank["image_attention_mask"] = torch.ones(1, PROBED_TOKENS, 1)
            yield {**arguments, **blank}
