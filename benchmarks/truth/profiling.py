"""Do stages agree with the kernels that really ran? A measured call under the profiler, stage by stage."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.kit.calls import Caller
from benchmarks.kit.listening import listening
from benchmarks.truth.timeline import PREFIX, Trace, agrees, read_trace, stages
from chronostat.measure.clock import Clock
from chronostat.measure.generate import Measured


class Ranges:
    """Writes them into the profiler's trace as annotations of the host."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def enter(self, stage: str) -> None:
        """Begin an annotation."""
        self._open.append(record_function(PREFIX + stage).__enter__())

    def leave(self, stage: str) -> None:
        """End the innermost one."""
        self._open.pop().__exit__(None, None, None)

    def token(self) -> None:
        """An annotation of no length."""
        with record_function(PREFIX + "token"):
            pass


def profiled(caller: Caller, clock: Clock, new_tokens: int) -> dict[str, Any]:
    """A measured call under the profiler: for each stage our value and the kernels'.

    Raises:
        MeasurementError: as ``Caller.measured``.
    """
    model = caller.built.model
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if model.device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        torch.ones(1, device=model.device).add_(1)  # the first kernels of a session can get lost
        caller.clock.synchronize()
        with listening(model, Ranges()):
            measured, _ = caller.measured(clock, new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = read_trace(path)
    return compared(measured, trace)


def compared(measured: Measured, trace: Trace) -> dict[str, Any]:
    """Our stages beside those of the kernels, as plain data."""
    timing = measured.timing
    rows: dict[str, Any] = {}
    for name, stage in stages(trace).items():
        ours_ms = getattr(timing, f"{name}_ms")
        if ours_ms is not None:
            rows[name] = {"ours_ms": ours_ms, **asdict(stage), "agrees": agrees(ours_ms, stage.reference_ms)}
    return {
        "source": timing.source,
        "unseen": timing.unseen,
        "total_ms": timing.total_ms,
        "new_tokens": timing.new_tokens,
        "kernels": len(trace.kernels),
        "launches": trace.launches,
        "lost": trace.lost,
        "stages": rows,
    }
