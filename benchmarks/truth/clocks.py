"""What do wrong marks do? Clocks that wait or look at the wrong stream, and a kernel of known length to miss."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from chronostat.measure.clock import CudaClock
from chronostat.models.anatomy import anatomy_of
from chronostat.models.blocks import running_blocks


class WaitingClock(CudaClock):
    """What many tools do: waits for the device at each mark."""

    def mark(self) -> torch.cuda.Event:
        """Drain the queue, then record."""
        self.synchronize()
        return super().mark()


class SideStreamClock(CudaClock):
    """A mistake: its events lie on a stream where no work is, so they pass as soon as they are recorded."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._side = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        """Record on the wrong stream."""
        with torch.cuda.stream(self._side):
            return super().mark()


@contextmanager
def planted(model: PreTrainedModel, cycles: int) -> Generator[None]:
    """A kernel of known cycles inside the last decoder block, once: at its first call, which is the prefill's."""
    state = {"left": 1}

    def sleep(*_: object) -> None:
        if state["left"]:
            state["left"] = 0
            torch.cuda._sleep(cycles)  # pyright: ignore[reportPrivateUsage] - the one kernel that takes as long as it is told

    handle = running_blocks(model, anatomy_of(model).blocks)[-1].register_forward_pre_hook(sleep)
    try:
        yield
    finally:
        handle.remove()
