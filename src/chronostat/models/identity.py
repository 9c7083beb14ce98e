"""Who is the same model: architecture and weights, by a rule that has a number.

What is stored was written with some rule and is checked by that rule for good. Docs: ``docs/records.md``.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig

from chronostat.models.storage import plain_tensors

_DIGITS = 12
_SAMPLED = 64  # values of each weight that are read
_SECOND_RULE = re.compile(r"2-([0-9a-f]{12})-([0-9a-f]{12})-([0-9a-f]{12})")
# what says where a configuration was saved and how it is run, not what comes out
_NOT_THE_MODEL = frozenset(
    {
        "architectures",
        "attn_implementation",
        "dtype",
        "experts_implementation",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_NOT_IN_THE_FIRST_RULE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"})


def fingerprint(model: nn.Module) -> str:
    """Who a model is, by the second rule: ``2-`` and three times twelve hex digits.

    The first twelve are of the architecture: the model's class, what its configuration sets but run-time switches and
    dtypes, names and shapes of all weights. The others are of up to 64 values spread over each weight, rounded to
    bfloat16, once straight and once by way of float16. One of them survives a cast: from float32 to bfloat16 the first;
    to float16 the second; of a checkpoint that is bfloat16 or float16 itself the second survives every one.
    """
    bare = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
    tensors = sorted(plain_tensors(bare, sampled=_SAMPLED).items())
    told = {
        "class": type(bare).__name__,
        "config": _chosen(getattr(bare, "config", None)),
        "weights": [(name, tuple(tensor.shape)) for name, tensor in tensors],
    }
    picked = [_picked(tensor) for _, tensor in tensors]
    straight = (each if isinstance(each, bytes) else _content(each.bfloat16()) for each in picked)
    by_half = (each if isinstance(each, bytes) else _content(each.half().bfloat16()) for each in picked)
    return f"2-{_digest([_json(told)])}-{_digest(straight)}-{_digest(by_half)}"


def unlike(stored: str, model: nn.Module) -> str | None:
    """What a model differs in from the one whose fingerprint was stored, for people; None: it is the same model."""
    theirs = _SECOND_RULE.fullmatch(stored)
    if theirs is None:
        if stored == _by_first_rule(model):
            return None
        return "its weights, configuration or dtype (it was stored by a rule that does not tell them apart)"
    mine = _SECOND_RULE.fullmatch(fingerprint(model))
    assert mine is not None, "this rule writes what it reads"
    if mine[1] != theirs[1]:
        return "its architecture or configuration"
    return None if mine[2] == theirs[2] or mine[3] == theirs[3] else "its weights"


def _picked(tensor: Tensor) -> Tensor | bytes:
    """Values spread over a weight: float32 where it is made of numbers that a cast rounds, else the bytes."""
    flat = tensor.flatten()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    numbers = flat.is_floating_point() and flat.element_size() > 1  # smaller ones are storage, never cast
    values = flat if numbers else flat.view(torch.uint8)
    few = values[:: max(1, ceil(values.numel() / _SAMPLED))].cpu()
    return few.float() if numbers else _content(few)


def _content(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_DIGITS]


def _json(told: object) -> bytes:
    return json.dumps(told, sort_keys=True, default=str).encode()


def _chosen(config: Any) -> dict[str, Any]:  # noqa: ANN401 - of any model, or none
    """What a configuration says beyond its class: a field that a new version of the library adds changes nothing."""
    if config is None:
        return {}
    usual = _defaults(type(config))
    chosen: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        held = vars(config).get(name)  # asking a configuration for what its layers differ in raises
        if name in _NOT_THE_MODEL or name.startswith("_"):
            continue
        if isinstance(held, PreTrainedConfig):
            chosen[name] = _chosen(held)
        elif name not in usual or value != usual[name]:
            chosen[name] = _without(_NOT_THE_MODEL, value)
    return chosen


def _defaults(kind: type) -> dict[str, Any]:
    """What the fields of a configuration's class are where nobody sets them; empty for classes of older making."""
    declared = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    values = {field.name: field.default for field in declared if field.default is not dataclasses.MISSING}
    made = {f.name: f.default_factory() for f in declared if f.default_factory is not dataclasses.MISSING}
    return values | made


def _without(names: frozenset[str], value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _without(names, item) for key, item in value.items() if key not in names}
    return value


def _by_first_rule(model: nn.Module) -> str | None:
    """Twelve hex digits, as versions without a number in the fingerprint wrote them; None: they could not."""
    config = getattr(model, "config", None)
    told = _without(_NOT_IN_THE_FIRST_RULE, config.to_dict() if config is not None else {})
    digest = hashlib.sha256(_json(told))
    for name, weight in sorted(model.named_parameters()):
        if is_traceable_wrapper_subclass(weight):
            return None
        flat = weight.detach().flatten()
        picked = flat[:: max(1, ceil(flat.numel() / _SAMPLED))].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]
