"""What else happened on the machine during one ``generate()``: facts that make its latency doubtful.

Nothing is disturbed merely for being slow: no latency is looked at, only counters of the system. Thresholds grow with
the duration of the call, so that a slow arm is not marked more often than a fast one under the same rate of trouble.
"""

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter_ns
from types import TracebackType

import torch

from chronostat.machine.gpu import (
    CLOCKS_SET,
    IDLE,
    POWER_CAP,
    Gpu,
    GpuState,
    gpu_of,
    held_by,
    other_processes,
    own_pids,
)
from chronostat.machine.linux import Linux

LEAST_SHARE = 0.01
"""Of the duration: what is lost to others and is less cannot hide a difference of 2 %."""
LEAST_MS = 0.2
"""Interrupts and kernel threads take this much now and then on a quiet machine."""
SLICE_MS = 3.0
"""What one involuntary switch costs at least where the waiting itself is not known: a time slice of the scheduler."""
LEAST_CLOCK = 0.75
"""Of the clock that the GPU should run at, as in nvbench's throttle rule."""
_NS_PER_MS = 1e6


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Counters at one moment; None, or an absent thread: unknown.

    Attributes:
        cpu: the one that this thread was on; None also where several threads work.
        waited_ms: for each thread that works for the model, how long it has waited for a CPU.
        switches: involuntary context switches of the process.
        stolen_ms: for each CPU what the host of this virtual machine took from it.
        throttled_ms: what the quotas of the control groups took.
        pressure_ms: how long any task of the machine waited for a CPU.
    """

    time_ns: int
    cpu: int | None = None
    waited_ms: dict[str, float] = field(default_factory=dict)
    switches: int = 0
    stolen_ms: dict[int, float] = field(default_factory=dict)
    throttled_ms: float | None = None
    pressure_ms: float | None = None
    gpu: GpuState | None = None


class Watch:
    """Reads the machine's counters before and after one ``generate()``, and says what disturbed it.

    Enter it before the clock starts, and leave it after the clock has stopped: what it costs lies outside the measured
    total. A fact that this system does not offer is unknown, never an error.

    Args:
        device: the device of the model.
        read: gives the facts; the machine's own if absent.

    Attributes:
        reason: after the ``with``: why this repeat is disturbed, for a person; None: nothing was seen.
    """

    def __init__(self, device: torch.device, *, read: Callable[[], Facts] | None = None) -> None:
        self.reason: str | None = None
        self._read = read or reader_for(device)
        self._before: Facts | None = None

    def __enter__(self) -> "Watch":
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._before is not None
        self.reason = reason(self._before, self._read())


class Reader:
    """Reads the facts of this process.

    Args:
        linux: the system.
        gpu: of the model; None: on a CPU, or unknown.
        on_cpu: the model runs on the CPU, so that all torch threads work for it.
    """

    def __init__(self, linux: Linux, gpu: Gpu | None, *, on_cpu: bool) -> None:
        self._linux = linux
        self._gpu = gpu
        self._on_cpu = on_cpu

    def __call__(self) -> Facts:
        """The facts of this moment."""
        linux = self._linux
        several = self._on_cpu and torch.get_num_threads() > 1
        cpu = None if several else linux.cpu_of_this_thread()
        waited_ms = linux.waited_ms(all_threads=several)
        return Facts(
            time_ns=perf_counter_ns(),
            cpu=cpu,
            waited_ms=dict(waited_ms or {}),
            switches=resource.getrusage(resource.RUSAGE_SELF if several else resource.RUSAGE_THREAD).ru_nivcsw,
            stolen_ms=dict(linux.stolen_ms(os.sched_getaffinity(0))) if linux.is_virtual else {},
            throttled_ms=linux.throttled_ms(),
            pressure_ms=None if waited_ms else linux.pressure_ms(),
            gpu=None if self._gpu is None else self._gpu.state(),
        )


@cache
def reader_for(device: torch.device) -> Reader:
    """The reader of the facts around a model on this device."""
    return Reader(Linux(), gpu_of(device), on_cpu=device.type == "cpu")


def reason(before: Facts, after: Facts) -> str | None:
    """What disturbed the time between two moments, in words; None: nothing was seen."""
    duration_ms = (after.time_ns - before.time_ns) / _NS_PER_MS
    seen = [*_cpu_reasons(before, after, duration_ms)]
    if before.gpu is not None and after.gpu is not None:
        seen += _gpu_reasons(before.gpu, after.gpu, duration_ms)
    return "; ".join(seen) or None


def _cpu_reasons(before: Facts, after: Facts, duration_ms: float) -> Iterator[str]:
    limit_ms = max(LEAST_MS, LEAST_SHARE * duration_ms)
    switches = after.switches - before.switches
    waited_ms = _waited_ms(before, after)
    if waited_ms is None:
        pressure_ms = _passed(before.pressure_ms, after.pressure_ms)
        if switches * SLICE_MS > limit_ms:
            yield f"{switches} involuntary context switches"
        elif pressure_ms > limit_ms and before.pressure_ms is not None and switches:
            yield f"tasks waited {pressure_ms:.1f} ms for a CPU"
    elif waited_ms > limit_ms:
        yield f"waited {waited_ms:.1f} ms for a CPU, {switches} involuntary context switches"
    stolen_ms = _stolen_ms(before, after)
    if stolen_ms > limit_ms:
        yield f"stolen CPU time {stolen_ms:.0f} ms"
    throttled_ms = _passed(before.throttled_ms, after.throttled_ms)
    if throttled_ms > limit_ms:
        yield f"cgroup throttled {throttled_ms:.1f} ms"


def _waited_ms(before: Facts, after: Facts) -> float | None:
    """The longest that one thread waited: the others wait for it at the end of each operation."""
    threads = before.waited_ms.keys() & after.waited_ms.keys()
    return max((after.waited_ms[each] - before.waited_ms[each] for each in threads), default=None)


def _stolen_ms(before: Facts, after: Facts) -> float:
    """The most that was taken from one CPU of those that may have worked."""
    known = before.stolen_ms.keys() & after.stolen_ms.keys()
    used = known if None in {before.cpu, after.cpu} else known & {before.cpu, after.cpu}
    return max((after.stolen_ms[cpu] - before.stolen_ms[cpu] for cpu in used), default=0.0)


def _passed(before_ms: float | None, after_ms: float | None) -> float:
    return 0.0 if before_ms is None or after_ms is None else after_ms - before_ms


def _gpu_reasons(before: GpuState, after: GpuState, duration_ms: float) -> Iterator[str]:
    held = dict.fromkeys([*held_by(before.reasons), *held_by(after.reasons)])
    if held:
        yield f"GPU clock held by {', '.join(held)}"
    else:
        yield from _held_meanwhile(before, after, max(LEAST_MS, LEAST_SHARE * duration_ms))
    full_mhz, now_mhz = after.full_sm_clock_mhz, after.sm_clock_mhz
    free_to_run = not (after.reasons or 0) & (IDLE | CLOCKS_SET | POWER_CAP)
    if full_mhz and now_mhz and free_to_run and now_mhz < LEAST_CLOCK * full_mhz:
        yield f"SM clock {now_mhz} of {full_mhz} MHz"
    if any(other_processes(state.pids, own_pids()) for state in (before, after)):
        yield "another process on the GPU"


def _held_meanwhile(before: GpuState, after: GpuState, limit_ms: float) -> Iterator[str]:
    """What began and ended between the two moments."""
    for policy, earlier_ms in before.held_ms.items():
        held_ms = after.held_ms.get(policy, earlier_ms) - earlier_ms
        if held_ms > limit_ms:
            yield f"GPU clock held by {policy} for {held_ms:.1f} ms"
