"""What a model's state is made of, whatever stores it: plain tensors, by name.

Quantised weights are often no plain tensors: torchao's and quanto's are subclasses that hold several and allow few
operations, libraries for 8 bit put bytes, numbers and objects into the state dict.
"""

from collections.abc import Iterator, Mapping
from io import BytesIO
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from chronostat.errors import ModelError

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)


@torch.no_grad()
def plain_tensors(model: nn.Module, *, sampled: int | None = None) -> dict[str, Tensor]:
    """All weights and stored buffers of a model as plain tensors, by name; the parts of one have names of theirs.

    Bytes and numbers in a state dict are tensors of bytes here. Nothing is changed. Only 4 bit weights of bitsandbytes
    are copied: on some CPUs the first call packs them anew, and they are the same here before and after.

    Args:
        model: any.
        sampled: of such a 4 bit weight only so many scales at most, spread over it; takes no time. None: all of it.

    Raises:
        ModelError: a weight is not in memory (offloaded), or an entry is of a kind that cannot be read.
    """
    return {name: part for entry, held in _entries(model, sampled) for name, part in _parts(entry, held)}


def _entries(model: nn.Module, sampled: int | None) -> Iterator[tuple[str, object]]:
    """Modules are asked one by one: saving a packed 4 bit weight rounds its scales, and it answers otherwise then."""
    for path, module in model.named_modules():
        own: dict[str, object] = dict(module.named_parameters(recurse=False))
        states = {name: getattr(weight, "quant_state", None) for name, weight in own.items()}
        if not any(states.values()):
            own = {}
            module._save_to_state_dict(own, "", True)  # pyright: ignore[reportPrivateUsage]
        for name, entry in own.items():
            state = states.get(name)
            held = entry if state is None else _four_bit(cast("Tensor", entry), state, sampled)
            yield f"{path}.{name}" if path else name, held


def _four_bit(weight: Tensor, state: Any, sampled: int | None) -> Mapping[str, object]:  # noqa: ANN401 - bitsandbytes
    packed = getattr(state, "packing_format_for_cpu", False)
    step = 1 if sampled is None else max(1, ceil(state.absmax.numel() / sampled))
    kind = {"kind": (state.quant_type, tuple(state.shape)), "scales": _scales(state, step, packed=packed)}
    if sampled is not None:
        return kind
    flat = weight.detach().view(torch.uint8).flatten()
    return {**kind, "values": _unpacked(flat, *state.shape) if packed else flat}


def _scales(state: Any, step: int, *, packed: bool) -> Tensor:  # noqa: ANN401 - as above
    """Every ``step``-th scale of the blocks of a 4 bit weight, in the order of the weight, rounded as packing does."""
    at = torch.arange(0, state.absmax.numel(), step, device=state.absmax.device)
    if packed:
        blocks = state.absmax.shape[0]  # of a row; one column for each row
        return state.absmax[at % blocks, at // blocks]
    scales = state.absmax.flatten()[at]
    if state.nested:
        scales = state.state2.code[scales.int()] * state.state2.absmax[at // state.state2.blocksize] + state.offset
    return scales.bfloat16()


def _unpacked(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The bytes of a 4 bit weight before bitsandbytes packed 32 rows each for its CPU kernel, shape [bytes]."""
    pairs = packed.view(rows // 32, columns // 2, 32)
    values = torch.cat((pairs & 0xF, pairs >> 4), dim=-1).view(rows // 32, columns // 2, 32, 2).transpose(1, 2)
    return (values[..., 0] << 4 | values[..., 1]).flatten()


def _parts(name: str, entry: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401 - a state dict holds anything
    if isinstance(entry, Tensor):
        yield from _tensors(name, entry)
    elif isinstance(entry, BytesIO):
        yield name, _bytes(entry.getvalue())
    elif isinstance(entry, bytes | bytearray):
        yield name, _bytes(bytes(entry))
    elif isinstance(entry, _PLAIN):
        yield name, _bytes(repr(entry).encode())
    elif isinstance(entry, Mapping):
        for key, item in cast("Mapping[object, object]", entry).items():
            yield from _parts(f"{name}.{key}", item)
    elif isinstance(entry, list | tuple):
        for index, item in enumerate(cast("list[object]", entry)):
            yield from _parts(f"{name}.{index}", item)
    else:
        raise ModelError(
            f"{name} in the state of the model is a {type(entry).__name__}, which cannot be read; save the model in a "
            "storage whose state dict holds tensors, bytes or numbers"
        )


def _tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor, or those that a subclass says it is made of (the protocol that torch.compile takes them apart by)."""
    if is_traceable_wrapper_subclass(tensor):
        inner, _ = tensor.__tensor_flatten__()
        for attribute in inner:
            yield from _tensors(f"{name}.{attribute}", getattr(tensor, attribute))
    elif tensor.is_meta:
        raise ModelError(
            f"{name} is not in memory: it was offloaded by a device_map; load the model whole, without device_map"
        )
    else:
        yield name, tensor.detach()


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
