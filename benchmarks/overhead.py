"""What does measuring add to a ``generate()`` call? Counted and timed hook by hook, and as a ratio to bare calls.

``python -m benchmarks.overhead [--cells bundled:4,cpu-5m:4,...] [--pairs N] [--seconds S]``. Two ways that must agree:

* a hooked call of an empty module, less a plain one, in microseconds, times the hooked calls of one ``generate()``,
  the cost of a token mark times the tokens, and that of taking the hooks out at the first token; as a share of the
  call;
* a bare and a measured call in each block, in random order, and in every third block a second bare one (A/A): medians
  of the paired ratios with distribution-free 95 % intervals; likewise for the whole ``measure_generate`` call, with
  setting and removing of hooks and the machine's counters.

A measured call follows the reading of these counters. So each block also has a bare call that follows them too
("prepared"): whether it takes longer than another bare one.

Cells go on where they stopped; raw values go to ``overhead.json``.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.kit.calls import Caller
from benchmarks.kit.cells import Cell
from benchmarks.kit.estimates import markdown_table
from benchmarks.kit.pairs import add_pair_options, fill_pairs, open_pairs, ratio_to_bare, warm_up
from benchmarks.kit.question import Question, Work
from chronostat.measure.clock import Clock, CpuClock, CudaClock, Mark, TimeLimit
from chronostat.measure.cross_checks import StreamCheck
from chronostat.measure.hooks import FORWARD, StageRecorder, TokenMarks
from chronostat.models.anatomy import anatomy_of

CELLS = "bundled:4,cpu-5m:4,cpu-30m:4,cpu-300m:4"
MOST_PAIRS, PAIRS_OF_LARGE, LARGE = 300, 60, {"cpu-300m"}  # a call of it takes more than a second
CALLS = 20_000  # of an empty module in one round
ROUNDS = 7
HEAD = (
    "model:tiles",
    "weights",
    "pairs",
    "bare call",
    "hooked calls, each",
    "token marks, each",
    "taken out",
    "share",
    "measured / bare",
    "prepared / bare",
    "A/A",
    "whole call / bare",
)
NOT_MEASURED = "not measured"  # in cells of earlier versions of this benchmark
REMOVALS = 20  # measured calls in which taking the hooks out is timed


class Empty(nn.Module):
    """Does nothing."""

    def forward(self, value: object) -> object:
        """What it was given."""
        return value


def hooked_call_us(clock: Clock, model: PreTrainedModel) -> float:
    """Microseconds that the recorder's two hooks of a stage add to a call; median of interleaved rounds."""
    plain, hooked = Empty(), Empty()
    limit, streams = TimeLimit(clock, None), StreamCheck(model.device, clock)
    recorder = StageRecorder(model, anatomy_of(model), clock, limit=limit, streams=streams, chunked=False)
    recorder._hook(hooked, hooked, FORWARD)  # pyright: ignore[reportPrivateUsage] - what it does is what is measured
    return _more_us(lambda: hooked(None), lambda: plain(None), clock)


def token_mark_us(clock: Clock, device: torch.device) -> float:
    """Microseconds that the criterion for token marks adds: what it does itself, and its answer that is joined."""
    ids, done = torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.bool, device=device)
    tokens = TokenMarks(clock, TimeLimit(clock, None), StreamCheck(device, clock), lambda: None)
    return _more_us(lambda: done | tokens(ids, None), lambda: None, clock)


def _more_us(one: Callable[[], object], other: Callable[[], object], clock: Clock) -> float:
    differences: list[float] = []
    for _ in range(ROUNDS):
        taken_ns: list[int] = []
        for call in (other, one):
            clock.restart()  # gives the events of a CUDA clock back
            start_ns = perf_counter_ns()
            for _ in range(CALLS):
                call()
            taken_ns.append(perf_counter_ns() - start_ns)
        differences.append((taken_ns[1] - taken_ns[0]) / CALLS / 1e3)
    return median(differences)


def removing_us(caller: Caller) -> float:
    """Microseconds that taking the hooks out takes at the first token of a measured call; median."""
    removing, taken_us = StageRecorder._first_token, list[float]()  # pyright: ignore[reportPrivateUsage] - as above

    def timed(recorder: StageRecorder) -> None:
        start_ns = perf_counter_ns()
        removing(recorder)
        taken_us.append((perf_counter_ns() - start_ns) / 1e3)

    with patch.object(StageRecorder, "_first_token", timed):
        for _ in range(REMOVALS):
            caller.measured()
    return median(taken_us)


def counted(caller: Caller) -> dict[str, int]:
    """Hooks that fired and marks that were taken in one measured call.

    The modules that the recorder put hooks on are those that have more of them at its first mark than before; what
    fires is counted by wrapping each of these hooks.
    """
    model, tally = caller.built.model, {"hooks": 0, "marks": 0}
    before = {id(module): tuple(map(set, _hooks(module))) for module in model.modules()}
    base: Any = CudaClock if model.device.type == "cuda" else CpuClock

    class Counting(base):
        def mark(self) -> Mark:
            if not tally["marks"]:
                for module in model.modules():
                    known = before[id(module)]
                    for hooks, earlier in zip(_hooks(module), known, strict=True):
                        for number in hooks.keys() - earlier:
                            hooks[number] = _counting(hooks[number], tally)
            tally["marks"] += 1
            return super().mark()

    clock = Counting(model.device) if model.device.type == "cuda" else Counting()
    caller.measured(clock)
    return tally


def _hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """Those before and after its forward; torch has no public way to list them."""
    return module._forward_pre_hooks, module._forward_hooks  # pyright: ignore[reportPrivateUsage]


def _counting(hook: Callable[..., Any], tally: dict[str, int]) -> Callable[..., Any]:
    def counting(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever a hook takes
        tally["hooks"] += 1
        return hook(*args, **kwargs)

    return counting


def measure(work: Work) -> None:
    """Pairs first, then what the measuring costs by itself."""
    caller = work.caller()
    cell = open_pairs(work, caller)
    warm_up(caller)
    complete = fill_pairs(work, caller, cell, _pairs(work.built.name, work.options), prepared=True)
    if "cost" not in cell:
        cell["cost"] = _cost(caller)
        work.file.save()
    work.say(f"{len(cell['rows'])} pairs, {'complete' if complete else 'to be continued'}")


def is_complete(cell: Cell, options: argparse.Namespace, model: str, _: int) -> bool:
    """Whether neither costs nor pairs are missing."""
    return "cost" in cell and len(cell["rows"]) >= _pairs(model, options)


def _pairs(model: str, options: argparse.Namespace) -> int:
    return options.pairs or (PAIRS_OF_LARGE if model in LARGE else MOST_PAIRS)


def _cost(caller: Caller) -> dict[str, float]:
    model = caller.built.model
    return {
        "hooked_call_us": hooked_call_us(caller.clock, model),
        "token_mark_us": token_mark_us(caller.clock, model.device),
        "removing_us": removing_us(caller),
        **counted(caller),
    }


def share(cell: Cell) -> float:
    """Cost of hooks, of token marks and of taking hooks out over the median bare call; two make a hooked call."""
    cost = cell["cost"]
    taken_us = cost["hooks"] / 2 * cost["hooked_call_us"] + cell["new_tokens"] * cost["token_mark_us"]
    taken_us += cost.get("removing_us", 0.0)
    return taken_us / 1e3 / median(row["bare_ms"] for row in cell["rows"])


def table(cells: dict[str, Cell]) -> str:
    """One row for each cell."""
    rows = [[*HEAD]]
    for key, cell in cells.items():
        if "cost" not in cell or not cell.get("rows"):
            continue
        cost, pairs = cell["cost"], cell["rows"]
        rows.append(
            [
                key,
                f"{cell['parameters'] / 1e6:.1f} M",
                str(len(pairs)),
                f"{median(row['bare_ms'] for row in pairs):.1f} ms",
                f"{cost['hooks'] / 2:g}, {cost['hooked_call_us']:.1f} µs",
                f"{cell['new_tokens']}, {cost['token_mark_us']:.1f} µs",
                f"{cost['removing_us']:.0f} µs" if "removing_us" in cost else NOT_MEASURED,
                f"{100 * share(cell):.3f} %",
                ratio_to_bare(pairs, "timing.total_ms"),
                ratio_to_bare(pairs, "prepared_ms") if any("prepared_ms" in row for row in pairs) else NOT_MEASURED,
                ratio_to_bare(pairs, "again_ms"),
                ratio_to_bare(pairs, "whole_ms"),
            ]
        )
    return markdown_table(rows)


OVERHEAD = Question(
    name="overhead",
    text=__doc__,
    cells=CELLS,
    tokens=8,
    default_tiles=4,
    add_options=lambda parser: add_pair_options(parser, "300; 60 for the largest model"),
    is_complete=is_complete,
    measure=measure,
    table=table,
)

if __name__ == "__main__":
    sys.exit(OVERHEAD.main())
