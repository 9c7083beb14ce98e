"""Second opinions about time: a measurement whose two clocks contradict each other is no measurement."""

from dataclasses import dataclass

import torch

from chronostat.errors import MeasurementError
from chronostat.measure.clock import Clock, Mark

_NS_PER_MS = 1_000_000
_RATE = 2e-3  # two honest clocks of one machine differ by less than 500 ppm (the most that NTP slews)
_READING_MS = 0.02
_STREAM_MS, _STREAM_SHARE = 0.5, 0.02  # host jitter around the two events at both ends of a call


@dataclass(frozen=True)
class _Reading:
    """One time of the clock, read between two of its witness."""

    before_ns: int
    time_ns: int
    after_ns: int


class HostWitness:
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
            raise MeasurementError(
                f"the clock says that generate() took {total_ms:.3f} ms, the system's raw monotonic clock between "
                f"{least_ms:.3f} and {most_ms:.3f} ms: the clock is wrapped, patched or was set meanwhile; no number "
                "comes of it"
            )
        return total_ms

    def _read(self) -> _Reading:
        return _Reading(self._clock.witness_ns(), self._clock.host_ns(), self._clock.witness_ns())


class StreamWitness:
    """Events that torch itself records on the current stream beside some marks of a CUDA clock; none on a CPU.

    A mark that was recorded on another stream does not wait for the stage's work.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pairs: list[tuple[Mark, torch.cuda.Event]] = []

    def beside(self, mark: Mark) -> None:
        """Record an event right after ``mark``."""
        if isinstance(mark, torch.cuda.Event):
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._pairs.append((mark, event))

    def doubt(self, clock: Clock) -> str | None:
        """What is wrong with the marks, after the synchronize; None: nothing."""
        apart_ms = max((abs(clock.between_ms(mark, event)) for mark, event in self._pairs), default=0.0)
        if apart_ms <= _STREAM_MS:
            return None
        return f"a mark lies {apart_ms:.3f} ms from the stream that the model works on: its clock uses another stream"


def span_doubt(clock: Clock, entry: Mark, end: Mark, *, inner_ms: float, total_ms: float) -> str | None:
    """Compare the device's own time from entry to return with the host's, which waits for all streams.

    Args:
        clock: of the marks.
        entry: the first mark of the call.
        end: the last one.
        inner_ms: host time from right after the first mark to right before the last one. On a CPU the process may lose
            its core beside a mark, so that all between ``inner_ms`` and ``total_ms`` is honest there.
        total_ms: host time of the whole call with its synchronize.
    """
    device_ms = clock.between_ms(entry, end)
    tolerance_ms = _STREAM_MS + _STREAM_SHARE * total_ms
    least_ms = total_ms if isinstance(entry, torch.cuda.Event) else min(inner_ms, total_ms)
    if least_ms - tolerance_ms <= device_ms <= total_ms + tolerance_ms:
        return None
    return (
        f"generate() took {total_ms:.3f} ms by the host, its marks say {device_ms:.3f} ms: work ran on a stream that "
        "the model's own did not wait for, or the marks are not to be trusted"
    )
