"""The one place where the difference between a CPU and an accelerator exists.

A mark is a moment on the device's own time line: read at once on a CPU, recorded as an event on the current stream on
CUDA. Marks never synchronise; ``synchronize`` does, once before and once after the measured call.
"""

from abc import ABC, abstractmethod
from time import CLOCK_MONOTONIC_RAW, clock_gettime_ns, perf_counter_ns

import torch

from chronostat.errors import ConfigError, GenerationTimeout, ModelError

Mark = int | torch.cuda.Event
_NS_PER_MS = 1_000_000


class Clock(ABC):
    """Time as the device and as the host see it."""

    @abstractmethod
    def follows(self, device: torch.device) -> bool:
        """Whether marks lie on the time line of ``device``."""

    @abstractmethod
    def restart(self) -> None:
        """Begin a new measurement: earlier marks may be reused from here on."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all that was queued."""

    @abstractmethod
    def mark(self) -> Mark:
        """Note this moment in the order of the device's work, without waiting."""

    @abstractmethod
    def between_ms(self, start: Mark, end: Mark) -> float:
        """Milliseconds between two marks of this clock; after ``synchronize``."""

    @abstractmethod
    def host_ns(self) -> int:
        """Monotonic host time in nanoseconds."""

    def cross_check_ns(self) -> int:
        """Host time of a second clock, which nobody sets or slews: what ``host_ns`` is checked against."""
        return clock_gettime_ns(CLOCK_MONOTONIC_RAW)

    def host_ms_since(self, start_ns: int) -> float:
        """Host milliseconds since ``host_ns`` gave ``start_ns``."""
        return (self.host_ns() - start_ns) / _NS_PER_MS


class CpuClock(Clock):
    """Host time is device time."""

    def follows(self, device: torch.device) -> bool:
        """Only the CPU: on any other device host time is when work was queued."""
        return device.type == "cpu"

    def restart(self) -> None:
        """Nothing to reuse."""

    def synchronize(self) -> None:
        """CPU work is done when the call returns."""

    def mark(self) -> int:
        """Host time in nanoseconds."""
        return self.host_ns()

    def between_ms(self, start: Mark, end: Mark) -> float:
        """Difference of two host times."""
        assert isinstance(start, int)
        assert isinstance(end, int)
        return (end - start) / _NS_PER_MS

    def host_ns(self) -> int:
        """``perf_counter_ns``."""
        return perf_counter_ns()


class CudaClock(Clock):
    """Events on the current stream of one device, taken from a pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: list[torch.cuda.Event] = []
        self._used = 0

    def follows(self, device: torch.device) -> bool:
        """The device that the events are recorded on."""
        return device == self._device

    def restart(self) -> None:
        """Give all events back to the pool."""
        self._used = 0

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        torch.cuda.synchronize(self._device)

    def mark(self) -> torch.cuda.Event:
        """Record the next event of the pool on the current stream."""
        if self._used == len(self._pool):
            self._pool.append(torch.cuda.Event(enable_timing=True))
        event = self._pool[self._used]
        self._used += 1
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between_ms(self, start: Mark, end: Mark) -> float:
        """Time between two recorded events."""
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end)

    def host_ns(self) -> int:
        """``perf_counter_ns``."""
        return perf_counter_ns()


class FakeClock(CpuClock):
    """Stands still until it is told to advance: measured times become equalities in tests."""

    def __init__(self) -> None:
        self._now_ns = 0

    def advance_ms(self, ms: float) -> None:
        """Let ``ms`` milliseconds pass."""
        self._now_ns += round(ms * _NS_PER_MS)

    def host_ns(self) -> int:
        """The fake time."""
        return self._now_ns

    def cross_check_ns(self) -> int:
        """The fake time: there is no other."""
        return self._now_ns


class TimeLimit:
    """A limit on host time since ``start``, looked at wherever a mark is taken.

    Args:
        clock: tells the host time.
        limit_s: seconds; None: no limit.

    Raises:
        ConfigError: the limit is not a positive number.
    """

    def __init__(self, clock: Clock, limit_s: float | None) -> None:
        if limit_s is not None and not limit_s > 0:
            raise ConfigError(
                f"time_limit_s = {limit_s!r}: a generation needs some time; give seconds above 0, or none"
            )
        self._clock = clock
        self._limit_s = limit_s
        self._start_ns: int | None = None

    def start(self, start_ns: int) -> None:
        """Count from ``start_ns``, a time of the clock's ``host_ns``."""
        self._start_ns = start_ns

    def check(self) -> None:
        """Go on while there is time left.

        Raises:
            GenerationTimeout: there is none.
        """
        if self._limit_s is None or self._start_ns is None:
            return
        passed_s = self._clock.host_ms_since(self._start_ns) / 1e3
        if passed_s > self._limit_s:
            raise GenerationTimeout(
                f"the generation took {passed_s:.3g} s, more than its limit of {self._limit_s:.3g} s, and was ended; "
                "raise the limit, or ask for fewer new tokens"
            )


_cuda_clocks: dict[torch.device, CudaClock] = {}  # one pool of events per device and process


def clock_for(device: torch.device) -> Clock:
    """The clock of a device.

    Raises:
        ModelError: a device whose work ends after the call returns and that no clock here can follow.
    """
    if device.type == "cuda":
        return _cuda_clocks.setdefault(device, CudaClock(device))
    if device.type == "cpu":
        return CpuClock()
    raise ModelError(f"the model is on device {device}; latencies can be measured on cpu and cuda, move it there")
