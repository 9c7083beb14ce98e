"""Replays on the CPU that are as blind as those of a GPU: no hook fires in them, and nothing may ask the host."""

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chronostat.engine import PlainCapturing
from chronostat.engine.replaying import CannotCapture, PlainReplay
from chronostat.measure.replays import collected_by

_FROM_HOST = "lift_fresh"  # torch.tensor([...]): copied from the host at each call
_TO_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive")
_READS = (Tensor.tolist, Tensor.numpy)
_LIBRARY_HOOKS = "transformers.utils.output_capturing"


class _AskedHost(CannotCapture):
    pass


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        indices = args[1] if name == "index" else ()
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        repeats = name == "repeat_interleave" and isinstance(args[0], Tensor) and not (kwargs or {}).get("output_size")
        if name in _TO_HOST or name == _FROM_HOST or masks or repeats:
            raise _AskedHost(f"asks the host ({name})")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS:
            raise _AskedHost(f"asks the host ({func.__name__})")
        return func(*args, **(kwargs or {}))


@contextmanager
def without_hooks(model):
    """No hook but those that only gather, as the library's do: a graph holds what they gathered."""
    with ExitStack() as undo:
        for module in model.modules():
            for name in ("_forward_pre_hooks", "_forward_hooks"):
                hooks = vars(module)[name]
                own = {key: hook for key, hook in hooks.items() if _fires_in_a_capture(hook)}
                undo.callback(setattr, module, name, hooks)
                setattr(module, name, type(hooks)(own))
        yield


def _fires_in_a_capture(hook):
    return getattr(hook, "__module__", "") == _LIBRARY_HOOKS or collected_by(hook) is not None


class Blind(PlainCapturing):
    """Captures what a graph can hold, as far as that can be seen on a CPU.

    Args:
        model: whose hooks stay silent in replays.
        clock: where replays of blocks take their time.
        ms: that each takes.
    """

    fires_hooks = False

    def __init__(self, model, clock, ms=0.0):
        self.model, self.clock, self.ms = model, clock, ms

    def mark(self):
        return self.clock.mark()

    def capture(self, work, beside, marks):
        with _Operations(), _Methods():
            work()
        return BlindReplay(work, self, timed=bool(marks))


class BlindReplay(PlainReplay):
    """Its result always lies in the same memory."""

    def __init__(self, work, capturing, *, timed):
        super().__init__(work)
        self.capturing, self.timed = capturing, timed
        self.memory = None

    def run(self):
        with without_hooks(self.capturing.model):
            super().run()
        if self.memory is None:
            self.memory = self.output
        for place, made in zip(tree_leaves(self.memory), tree_leaves(self.output), strict=True):
            if isinstance(place, Tensor) and place is not made:
                place.copy_(made)
        self.output = self.memory
        clock = self.capturing.clock
        start = clock.mark()
        clock.advance_ms(self.capturing.ms)
        if self.timed:
            self.marks = (start, clock.mark())
