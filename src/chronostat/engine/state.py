"""Everything that a captured forward depends on beside its inputs: a graph of a state that is gone is never replayed.

A graph holds addresses, so weights count by where they lie: one that is changed in place is read as it is then, one
that is put in another's place is another state. Numbers, names and configurations of modules count by value, so that a
knob that is applied again is the state that it was before.
"""

from collections.abc import Hashable, Iterable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from chronostat.measure.replays import is_seen_in_replays
from chronostat.models.weights import Same

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
_OF_TORCH = frozenset(vars(nn.Module())) - {"training"}
_OWN_HOOKS = "transformers.utils.output_capturing"  # do nothing unless outputs are asked for, which runs eagerly


class State:
    """One state of a module, compared by identity: it is hashed for every token."""

    def __init__(self, key: Hashable) -> None:
        self.key = key


class States:
    """States that were seen and are still in use."""

    def __init__(self) -> None:
        self._seen: WeakValueDictionary[Hashable, State] = WeakValueDictionary()

    def now(self, modules: Iterable[nn.Module], also: Hashable = None) -> State:
        """The state that modules are in, and what else counts; the same object as when both were so before."""
        key = (also, *state_of(modules))
        state = self._seen.get(key)
        if state is None:
            state = self._seen[key] = State(key)
        return state


def state_of(modules: Iterable[nn.Module]) -> tuple[Hashable, ...]:
    """What a module would run now: itself and those inside of it, with their attributes and weights.

    What the engine and a recorder put there for a time, which a replay needs not, is left out.
    """
    seen: dict[int, Hashable] = {}
    return tuple(_module(module, seen) for module in modules)


def skipped_hooks(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, object]]:
    """Hooks that would not run in a replay, each behind the path of its module.

    Args:
        modules: ``named_modules()`` of what is replayed; its own hooks run, around the replay.
    """
    for name in ("_global_forward_pre_hooks", "_global_forward_hooks"):
        yield from (("every module", hook) for hook in vars(torch_modules)[name].values())
    for path, module in modules:
        own = vars(module)
        before, after = own["_forward_pre_hooks"], own["_forward_hooks"]
        if not path or not (before or after):
            continue
        for hook in (*before.values(), *after.values()):
            if getattr(hook, "__module__", None) != _OWN_HOOKS and not is_seen_in_replays(hook):
                yield path, hook


def switches() -> Hashable:
    """What torch does the same work by."""
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def _module(module: nn.Module, seen: dict[int, Hashable]) -> Hashable:
    attributes = [
        (name, value if type(value) in _PLAIN else seen.get(id(value)) or _frozen(value, seen))
        for name, value in vars(module).items()
        if name not in _OF_TORCH and not (type(value) is FunctionType and is_seen_in_replays(value))
    ]
    own = vars(module)
    held = (*own["_parameters"].values(), *own["_buffers"].values())
    tensors = [_place(tensor) for tensor in held if tensor is not None]
    return (type(module), len(own["_modules"]), *attributes, *tensors)


def _place(tensor: Tensor) -> Hashable:
    """Where the values lie, and how they are read."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return Same(tensor)  # a quantised weight holds several tensors
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _frozen(value: Any, seen: dict[int, Hashable]) -> Hashable:  # noqa: ANN401 - attributes hold anything
    """Values of what is data or code, identity of all else."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return _place(value)
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value), *(_frozen(item, seen) for item in value))
    if isinstance(value, dict):
        return (dict, *((str(name), _frozen(item, seen)) for name, item in value.items()))
    if isinstance(value, MethodType):
        return (_frozen(value.__func__, seen), Same(value.__self__))
    if isinstance(value, FunctionType):
        if id(value) not in seen:
            seen[id(value)] = Same(value)  # its closure may hold it, as forward of transformers' blocks does from 5.23
            seen[id(value)] = (value.__code__, *_of_function(value, seen))
        return seen[id(value)]
    if hasattr(value, "to_dict") and not isinstance(value, nn.Module):  # a configuration
        if id(value) not in seen:  # most modules share one
            seen[id(value)] = Same(value)  # it may hold what holds it
            seen[id(value)] = tuple((name, _frozen(item, seen)) for name, item in vars(value).items())
        return seen[id(value)]
    return Same(value)


def _of_function(function: FunctionType, seen: dict[int, Hashable]) -> Iterator[Hashable]:
    for cell in function.__closure__ or ():
        yield _frozen(_content(cell), seen)
    for default in function.__defaults__ or ():
        yield _frozen(default, seen)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
