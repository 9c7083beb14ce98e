"""Where does the rest of a call go, do kernels agree, are wrong marks caught? What is measured beside the pairs."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.kit.blocks import shuffled
from benchmarks.kit.calls import Caller, plain_timing
from benchmarks.kit.cells import Cell
from benchmarks.kit.pairs import PARTS_CALLS, parts_of
from benchmarks.kit.question import Work
from benchmarks.truth.clocks import SideStreamClock, WaitingClock, planted
from benchmarks.truth.profiling import profiled

WAITING_PAIRS = 6
PROFILED_CALLS = 2
PLANTED_CYCLES = 40_000_000  # about 20 ms on an H100
PROFILED_S = 12.0  # a profiled call with reading its trace, at most about


def has_extras(cell: Cell, device: str) -> bool:
    """Whether all of them were measured."""
    names = ("parts", "timeline", *(("waiting", "wrong_stream") if device == "cuda" else ()))
    return all(name in cell for name in names)


def fill_extras(work: Work, caller: Caller, cell: Cell, call_s: float) -> bool:
    """Measure those that are missing, as far as the time goes; whether none is missing any more."""
    complete = True
    for name, seconds, measure in _extras(caller, work.options.profiled_tokens, call_s):
        if name in cell:
            continue
        if not work.box.allows(seconds):
            complete = False
            continue
        try:
            cell[name] = measure()
        except Exception:  # noqa: BLE001 - time on a device is dear: the other cells go on, the next call tries again
            complete = False
            cell.setdefault("not_measured", {})[name] = traceback.format_exc()
            traceback.print_exc()
        else:
            cell.get("not_measured", {}).pop(name, None)
        work.file.save()
    return complete


def _extras(caller: Caller, tokens: int, call_s: float) -> Sequence[tuple[str, float, Callable[[], object]]]:
    """Name, seconds at most, and what is measured.

    Args:
        caller: makes the calls.
        tokens: length of profiled answers: the profiler slows each token and its trace is large.
        call_s: what a call takes.
    """
    extras: list[tuple[str, float, Callable[[], object]]] = [
        ("parts", 2 * PARTS_CALLS * call_s, lambda: parts_of(caller)),
        ("timeline", (PROFILED_CALLS + 1) * PROFILED_S, lambda: _timeline(caller, tokens)),
    ]
    if caller.built.model.device.type == "cuda":
        extras += [
            ("waiting", 3 * WAITING_PAIRS * call_s, lambda: _waiting(caller)),
            ("wrong_stream", 2 * PROFILED_S, lambda: _planted(caller, tokens)),
        ]
    return extras


def _timeline(caller: Caller, tokens: int) -> dict[str, Any]:
    """Profiled calls, and calls of the same length without the profiler; a first profiled one is thrown away."""
    profiled(caller, caller.clock, tokens)
    return {
        "profiled": [profiled(caller, caller.clock, tokens) for _ in range(PROFILED_CALLS)],
        "unprofiled": [plain_timing(caller.measured(new_tokens=tokens)[0]) for _ in range(PARTS_CALLS)],
    }


def _waiting(caller: Caller) -> list[dict[str, Any]]:
    """Pairs of a measured call and one whose marks wait for the device."""
    clocks = {"plain": None, "waiting": WaitingClock(caller.built.model.device)}
    return [
        {arm: plain_timing(caller.measured(clocks[arm])[0]) for arm in shuffled(clocks, 1, index)}
        for index in range(WAITING_PAIRS)
    ]


def _planted(caller: Caller, tokens: int) -> dict[str, Any]:
    """A kernel of some milliseconds in the last block's prefill, seen with marks on the right and on a wrong stream."""
    model = caller.built.model
    clocks = {"right": caller.clock, "wrong": SideStreamClock(model.device)}
    found: dict[str, Any] = {}
    for name, clock in clocks.items():
        with planted(model, PLANTED_CYCLES):
            found[name] = profiled(caller, clock, tokens)
    return found
