"""A GPU that takes no time: streams that work in order, events, and a host that runs ahead or loses its core."""

from collections.abc import Collection, Mapping

import torch

from chronostat.measure.clock import CudaClock


class Stream:
    """Does one thing after the other, each when the host has queued it; done with all at ``free_ms``."""

    def __init__(self, gpu: "SimulatedGpu") -> None:
        self._gpu = gpu
        self.free_ms = 0.0

    def queue(self, ms: float) -> float:
        self.free_ms = max(self.free_ms, self._gpu.host_ms) + ms
        return self.free_ms


class Event:
    """Passes when its stream is done with what was queued before."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self, stream: Stream) -> None:
        self.at_ms = stream.queue(0)

    def elapsed_time(self, end: "Event") -> float:
        return end.at_ms - self.at_ms


class SimulatedGpu:
    """Stands in for ``torch.cuda`` as long as the test runs."""

    def __init__(self, monkeypatch) -> None:
        self.host_ms = 0.0
        self.main, self.side = Stream(self), Stream(self)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.main)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: self.wait())

    def wait(self) -> None:
        self.host_ms = max(self.host_ms, self.main.free_ms, self.side.free_ms)


class SimulatedClock(CudaClock):
    """The real clock of a CUDA device, on the simulated one.

    Args:
        lost_before_ms: time that the host is without a core right before it records a mark, by the mark's number.
        lost_after_ms: and right after it.
        wrong: its marks lie on the side stream: all of them, or those of these numbers.
    """

    def __init__(
        self,
        gpu: SimulatedGpu,
        *,
        lost_before_ms: Mapping[int, float] | None = None,
        lost_after_ms: Mapping[int, float] | None = None,
        wrong: bool | Collection[int] = False,
    ) -> None:
        super().__init__(torch.device("cpu"))
        self._gpu = gpu
        self._before, self._after, self._wrong = lost_before_ms or {}, lost_after_ms or {}, wrong

    def mark(self):
        number = self._used
        self._gpu.host_ms += self._before.get(number, 0)
        event = super().mark()
        if self._wrong is True or (self._wrong and number in self._wrong):
            event.record(self._gpu.side)
        self._gpu.host_ms += self._after.get(number, 0)
        return event

    def host_ns(self) -> int:
        return round(self._gpu.host_ms * 1e6)

    cross_check_ns = host_ns
