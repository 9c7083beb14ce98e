"""Second opinions about time: a measurement whose two clocks contradict each other is no measurement."""

from dataclasses import dataclass

import torch

from chronostat.errors import ExecutionError
from chronostat.measure.clock import Clock, Mark

_NS_PER_MS = 1_000_000
_RATE = 2e-3  # two honest clocks of one machine differ by less than 500 ppm (the most that NTP slews)
_READING_MS = 0.02
_STREAM_MS, _STREAM_SHARE = 0.5, 0.02  # until an event passes on an idle stream, and a wait of the host is over


@dataclass(frozen=True)
class TimedMark:
    """A mark, and the host times between which it was taken: the host may lose its core beside it."""

    mark: Mark
    before_ns: int
    after_ns: int

    @classmethod
    def by(cls, clock: Clock) -> "TimedMark":
        """Take one now."""
        before_ns = clock.host_ns()
        return cls(clock.mark(), before_ns, clock.host_ns())


@dataclass(frozen=True)
class _Reading:
    """One time of the clock, read between two of its witness."""

    before_ns: int
    time_ns: int
    after_ns: int


class HostClockCheck:
    """Reads a clock of the system around each reading of the measurement's own clock.

    Args:
        clock: the one that measures.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start: _Reading | None = None

    def start_ns(self) -> int:
        """Host time of the clock at the start of the call."""
        self._start = self._read()
        return self._start.time_ns

    def total_ms(self) -> float:
        """Host milliseconds since ``start_ns``.

        Raises:
            MeasurementError: the clock says something else than the system.
        """
        assert self._start is not None
        start, end = self._start, self._read()
        total_ms = (end.time_ns - start.time_ns) / _NS_PER_MS
        least_ms = (end.before_ns - start.after_ns) / _NS_PER_MS
        most_ms = (end.after_ns - start.before_ns) / _NS_PER_MS
        if not least_ms * (1 - _RATE) - _READING_MS <= total_ms <= most_ms * (1 + _RATE) + _READING_MS:
            raise ExecutionError(
                f"the clock says that generate() took {total_ms:.3f} ms, the system's raw monotonic clock between "
                f"{least_ms:.3f} and {most_ms:.3f} ms: the clock is wrapped, patched or was set meanwhile; no number "
                "comes of it"
            )
        return total_ms

    def _read(self) -> _Reading:
        return _Reading(self._clock.cross_check_ns(), self._clock.host_ns(), self._clock.cross_check_ns())


class StreamCheck:
    """Takes marks of a clock, with an event that torch itself records right after each on the current stream.

    A mark on another stream does not wait for the stage's work. On one stream the event follows the mark at once, or,
    where the device has nothing to do, when the host comes to record it: not later than the host needed for both. On a
    CPU there are no events.

    Args:
        device: the model's.
        clock: takes the marks.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._pairs: list[tuple[Mark, torch.cuda.Event, float]] = []

    def mark(self) -> Mark:
        """A mark of the clock."""
        taken = TimedMark.by(self._clock)
        if isinstance(taken.mark, torch.cuda.Event):
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._pairs.append((taken.mark, event, self._clock.host_ms_since(taken.before_ns)))
        return taken.mark

    def doubt(self) -> str | None:
        """What is wrong with the marks, after the synchronize; None: nothing."""
        for mark, event, host_ms in self._pairs:
            apart_ms = self._clock.between_ms(mark, event)
            if abs(apart_ms) > host_ms + _STREAM_MS:
                return (
                    f"a mark lies {apart_ms:.3f} ms from the stream that the model works on: its clock uses another "
                    "stream"
                )
        return None


def span_doubt(clock: Clock, entry: TimedMark, end: TimedMark, *, waited_ms: float, total_ms: float) -> str | None:
    """Compare the device's own time from entry to return with the host's, which waits for all streams.

    The host may lose its core beside a mark: on whichever side of it, that is honest. So the device needs at least the
    host's time between the marks and, on CUDA, its wait after them.

    Args:
        clock: of the marks.
        entry: the first mark of the call.
        end: the last one.
        waited_ms: host time of the synchronize after ``end``.
        total_ms: host time of the whole call with that synchronize.
    """
    device_ms = clock.between_ms(entry.mark, end.mark)
    tolerance_ms = _STREAM_MS + _STREAM_SHARE * total_ms
    inner_ms = (end.before_ns - entry.after_ns) / _NS_PER_MS
    least_ms = inner_ms + (waited_ms if isinstance(entry.mark, torch.cuda.Event) else 0.0)
    if least_ms - tolerance_ms <= device_ms <= total_ms + tolerance_ms:
        return None
    return (
        f"generate() took {total_ms:.3f} ms by the host, its marks say {device_ms:.3f} ms: work ran on a stream that "
        "the model's own did not wait for, or the marks are not to be trusted"
    )
