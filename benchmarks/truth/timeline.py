"""When did the kernels of a stage really run? Read from the profiler's trace, whatever our events say.

A kernel belongs to the stage during which the host launched it. A moment of the host lies on the device's time line
where the device is done with all that was launched before it: at that moment itself if the device was idle, otherwise
at the end of the last such kernel. Between two such moments lies the stage, as docs/definitions.md has it, read from
kernels instead of events. All times in the trace are microseconds of one clock.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronostat.measure.spans import Interval, length, outside, union

PREFIX = "chronostat:"  # of our annotations in the trace
_DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
_LAUNCHES = re.compile(r"^(cuda|cu)(Launch|Memcpy|Memset|GraphLaunch)")
TOLERANCE_SHARE, TOLERANCE_MS = 0.01, 0.1


@dataclass(frozen=True)
class Kernel:
    """One piece of work of the device; host time of its launch, device times of its run, in microseconds."""

    launch_us: float
    start_us: float
    end_us: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What happened in one profiled call.

    Attributes:
        kernels: kernels, copies and fills, in the order of their launch.
        launches: launching calls of the host.
        lost: launching calls to which no work of the device belongs: the profiler can lose some.
        ranges: annotated ranges of the host by name.
    """

    kernels: tuple[Kernel, ...]
    launches: int
    lost: int
    ranges: Mapping[str, Sequence[Interval]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as the kernels tell it, in milliseconds.

    Attributes:
        reference_ms: between its first and last moment on the device's time line.
        span_ms: from the start of its first kernel to the end of its last one.
        busy_ms: of these, how long at least one kernel ran.
        idle_ms: ``reference_ms - busy_ms``: the device waited for the host.
        kernels: how many.
    """

    reference_ms: float
    span_ms: float
    busy_ms: float
    idle_ms: float
    kernels: int


def read_trace(path: Path) -> Trace:
    """Read what ``export_chrome_trace`` wrote."""
    return parse_trace(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def parse_trace(events: Iterable[Mapping[str, Any]]) -> Trace:
    """Put launches, device work and annotations together by their correlation numbers."""
    complete = [event for event in events if event.get("ph") == "X"]
    launched = {
        event["args"]["correlation"]: float(event["ts"])
        for event in complete
        if event.get("cat") in {"cuda_runtime", "cuda_driver"} and _LAUNCHES.match(event["name"])
    }
    work = [event for event in complete if event.get("cat") in _DEVICE_WORK]
    kernels = [
        Kernel(launched[number], float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in work
        if (number := event["args"].get("correlation")) in launched
    ]
    seen = {event["args"].get("correlation") for event in work}
    ranges: dict[str, list[Interval]] = {}
    for event in complete:
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX):
            start_us = float(event["ts"])
            ranges.setdefault(event["name"].removeprefix(PREFIX), []).append((start_us, start_us + float(event["dur"])))
    return Trace(
        kernels=tuple(sorted(kernels, key=lambda kernel: kernel.launch_us)),
        launches=len(launched),
        lost=len(launched.keys() - seen),
        ranges=ranges,
    )


def stages(trace: Trace) -> dict[str, Stage]:
    """The stages of a call by the names of ``StageTiming``, without ``_ms``."""
    ranges = {name: sorted(found) for name, found in trace.ranges.items()}
    windows = {
        "vision": outside(ranges.get("vision", []), ranges.get("projector", [])),
        "llm_prefill": union(ranges.get("blocks", [])),
        "prefill": union([*ranges.get("encode", []), *ranges.get("forward", [])]),
    }
    tokens = [start for start, _ in ranges.get("token", [])]
    if len(tokens) > 1:
        windows["decode"] = [(tokens[0], tokens[-1])]
    return {name: stage_in(trace.kernels, found) for name, found in windows.items() if found}


def stage_in(kernels: Sequence[Kernel], windows: Sequence[Interval]) -> Stage:
    """One stage from its windows on the host, which do not overlap.

    Args:
        kernels: in the order of their launch.
        windows: host times in microseconds.
    """
    inside = [kernel for kernel in kernels if any(start <= kernel.launch_us < end for start, end in windows)]
    moments = [(_on_device(kernels, start), _on_device(kernels, end)) for start, end in windows]
    reference = length(moments)
    busy = length((kernel.start_us, kernel.end_us) for kernel in inside)
    span = max(kernel.end_us for kernel in inside) - min(kernel.start_us for kernel in inside) if inside else 0.0
    return Stage(
        reference_ms=reference / 1e3,
        span_ms=span / 1e3,
        busy_ms=busy / 1e3,
        idle_ms=(reference - busy) / 1e3,
        kernels=len(inside),
    )


def agrees(ours_ms: float, reference_ms: float) -> bool:
    """Whether two lengths are within 1 % or 0.1 ms."""
    return abs(ours_ms - reference_ms) <= max(TOLERANCE_SHARE * reference_ms, TOLERANCE_MS)


def _on_device(kernels: Sequence[Kernel], host_us: float) -> float:
    """When the device is done with all that was launched before a moment of the host."""
    return max([host_us, *(kernel.end_us for kernel in kernels if kernel.launch_us < host_us)])
