"""One cell: a model with a number of tiles. Pairs first, then the extra calls; all of it can go on later."""

import traceback
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cells import Cell, CellFile, TimeBox
from benchmarks.truth.calls import Caller, plain_timing
from benchmarks.truth.probe import SideStreamClock, WaitingClock, planted

WARM_UPS = 2
PARTS_CALLS = 5
WAITING_PAIRS = 6
PROFILED_CALLS = 2
PLANTED_CYCLES = 40_000_000  # about 20 ms on an H100
PROFILED_S = 12.0  # a profiled call with reading its trace, at most about


class Plan(NamedTuple):
    """What a cell needs.

    Attributes:
        again_every: in every so many blocks the bare call runs twice (A/A).
        profiled_tokens: length of profiled answers: the profiler slows each token and its trace is large.
        extras: whether the calls beside the pairs are made.
        prepared: whether each block has a bare call right after what a measured call reads of the machine.
    """

    pairs: int
    again_every: int
    profiled_tokens: int
    extras: bool
    prepared: bool = False


def is_complete(cell: Cell, plan: Plan, device: str) -> bool:
    """Whether nothing is missing."""
    names = ("parts", "timeline", *(("waiting", "wrong_stream") if device == "cuda" else ()))
    return len(cell.get("rows", [])) >= plan.pairs and (not plan.extras or all(name in cell for name in names))


def warm_up(caller: Caller) -> None:
    """Both kinds of call, so that neither finds anything cold."""
    for _ in range(WARM_UPS):
        caller.bare_ms()
        caller.measured()


def run_cell(caller: Caller, cell: Cell, plan: Plan, box: TimeBox, file: CellFile) -> bool:
    """Measure what is missing; whether the cell is complete."""
    started_s = perf_counter()
    warm_up(caller)
    call_s = (perf_counter() - started_s) / (2 * WARM_UPS)
    complete = _pairs(caller, cell.setdefault("rows", []), plan, box, lambda: file.save(now=False))
    file.save()
    for name, seconds, measure in _extras(caller, plan, call_s) if plan.extras else ():
        if name in cell:
            continue
        if not box.allows(seconds):
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
        file.save()
    return complete


def _pairs(caller: Caller, rows: list[dict[str, Any]], plan: Plan, box: TimeBox, kept: Callable[[], None]) -> bool:
    longest_s = 0.0
    while len(rows) < plan.pairs:
        if not box.allows(1.2 * longest_s):
            return False
        started_s = perf_counter()
        again = len(rows) % plan.again_every == 0
        rows.append(_block(caller, len(rows), again=again, prepared=plan.prepared))
        longest_s = max(longest_s, perf_counter() - started_s)
        kept()
    return True


def _block(caller: Caller, index: int, *, again: bool, prepared: bool) -> dict[str, Any]:
    """Each arm once, in an order drawn for this block."""
    arms = ["bare", "measured", *(["again"] if again else []), *(["prepared"] if prepared else [])]
    order = [str(arm) for arm in np.random.default_rng([0, index]).permutation(arms)]
    row: dict[str, Any] = {"order": order}
    for arm in order:
        if arm == "measured":
            measured, row["whole_ms"] = caller.measured()
            row["timing"] = plain_timing(measured)
        else:
            row[f"{arm}_ms"] = caller.prepared_ms() if arm == "prepared" else caller.bare_ms()
    return row


def _extras(caller: Caller, plan: Plan, call_s: float) -> Sequence[tuple[str, float, Callable[[], object]]]:
    """Name, seconds at most, and what is measured."""
    on_cuda = caller.subject.model.device.type == "cuda"
    extras: list[tuple[str, float, Callable[[], object]]] = [
        ("parts", 2 * PARTS_CALLS * call_s, lambda: [caller.parts() for _ in range(PARTS_CALLS)]),
        ("timeline", (PROFILED_CALLS + 1) * PROFILED_S, lambda: _timeline(caller, plan.profiled_tokens)),
    ]
    if on_cuda:
        extras += [
            ("waiting", 3 * WAITING_PAIRS * call_s, lambda: _waiting(caller)),
            ("wrong_stream", 2 * PROFILED_S, lambda: _planted(caller, plan.profiled_tokens)),
        ]
    return extras


def _timeline(caller: Caller, tokens: int) -> dict[str, Any]:
    """Profiled calls, and calls of the same length without the profiler; a first profiled one is thrown away."""
    caller.profiled(caller.clock, tokens)
    return {
        "profiled": [caller.profiled(caller.clock, tokens) for _ in range(PROFILED_CALLS)],
        "unprofiled": [plain_timing(caller.measured(new_tokens=tokens)[0]) for _ in range(PARTS_CALLS)],
    }


def _waiting(caller: Caller) -> list[dict[str, Any]]:
    """Pairs of a measured call and one whose marks wait for the device."""
    clock = WaitingClock(caller.subject.model.device)
    rows: list[dict[str, Any]] = []
    for index in range(WAITING_PAIRS):
        row: dict[str, Any] = {}
        for arm in np.random.default_rng([1, index]).permutation(["plain", "waiting"]):
            row[str(arm)] = plain_timing(caller.measured(clock if arm == "waiting" else None)[0])
        rows.append(row)
    return rows


def _planted(caller: Caller, tokens: int) -> dict[str, Any]:
    """A kernel of some milliseconds in the last block's prefill, seen with marks on the right and on a wrong stream."""
    model = caller.subject.model
    clocks = {"right": caller.clock, "wrong": SideStreamClock(model.device)}
    found: dict[str, Any] = {}
    for name, clock in clocks.items():
        with planted(model, PLANTED_CYCLES):
            found[name] = caller.profiled(clock, tokens)
    return found
