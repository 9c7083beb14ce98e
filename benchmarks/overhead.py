"""What measuring adds to a ``generate()`` call: counted and timed hook by hook, and as a ratio to bare calls.

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
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.cells import Cell, CellFile, TimeBox, arguments
from benchmarks.common import format_estimate, markdown_table, ratio_interval
from benchmarks.models import Subject
from benchmarks.progress import run_benchmark
from benchmarks.truth.calls import Caller
from benchmarks.truth.cells import Plan, run_cell
from benchmarks.truth.tables import again_ratio
from chronostat.measure.clock import Clock, CpuClock, CudaClock, Mark, TimeLimit, clock_for
from chronostat.measure.stages import FORWARD, StageRecorder, TokenMarks
from chronostat.measure.witness import StreamWitness
from chronostat.models.anatomy import anatomy_of
from chronostat.models.prepare import count_image_tokens

CELLS = "bundled:4,cpu-5m:4,cpu-30m:4,cpu-300m:4"
MOST_PAIRS, PAIRS_OF_LARGE, LARGE = 300, 60, {"cpu-300m"}  # a call of it takes more than a second
CALLS = 20_000  # of an empty module in one round
ROUNDS = 7
REMOVALS = 20  # measured calls in which taking the hooks out is timed


class Empty(nn.Module):
    """Does nothing."""

    def forward(self, value: object) -> object:
        """What it was given."""
        return value


def hooked_call_us(clock: Clock, model: PreTrainedModel) -> float:
    """Microseconds that the recorder's two hooks of a stage add to a call; median of interleaved rounds."""
    plain, hooked = Empty(), Empty()
    limit, streams = TimeLimit(clock, None), StreamWitness(model.device, clock)
    recorder = StageRecorder(model, anatomy_of(model), clock, limit=limit, streams=streams, chunked=False)
    recorder._hook(hooked, hooked, FORWARD)  # pyright: ignore[reportPrivateUsage] - what it does is what is measured
    return _more_us(lambda: hooked(None), lambda: plain(None), clock)


def token_mark_us(clock: Clock, device: torch.device) -> float:
    """Microseconds that the criterion for token marks adds: what it does itself, and its answer that is joined."""
    ids, done = torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.bool, device=device)
    tokens = TokenMarks(clock, TimeLimit(clock, None), StreamWitness(device, clock), lambda: None)
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
    model, tally = caller.subject.model, {"hooks": 0, "marks": 0}
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


def main() -> int:
    """Measure what is missing, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--cells", default=CELLS, help=f"model:tiles, in this order (default {CELLS})")
    parser.add_argument("--pairs", type=int, help="pairs for each cell (default 300; 60 for the largest model)")
    parser.add_argument("--again-every", type=int, default=3, help="a second bare call in every so many blocks (3)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of each answer (default 8)")
    options = parser.parse_args()
    return run_benchmark(
        "overhead",
        options,
        is_complete=lambda cell, model, _: "cost" in cell and len(cell["rows"]) >= _pairs(model, options),
        measure=partial(_measure_cell, options),
        table=table,
        default_tiles=4,
    )


def _pairs(model: str, options: argparse.Namespace) -> int:
    return options.pairs or (PAIRS_OF_LARGE if model in LARGE else MOST_PAIRS)


def _measure_cell(
    options: argparse.Namespace, subject: Subject, tiles: int, key: str, file: CellFile, box: TimeBox
) -> None:
    batch = subject.batch(tiles)
    cell = file.open(
        key,
        subject.model,
        tiles=tiles,
        image_tokens=count_image_tokens(subject.model, batch),
        prompt_tokens=batch["input_ids"].shape[1],
        new_tokens=options.tokens,
        parameters=subject.parameters,
    )
    clock = clock_for(subject.model.device)
    caller = Caller(subject, batch, options.tokens, clock)
    pairs = _pairs(subject.name, options)
    plan = Plan(pairs=pairs, again_every=options.again_every, profiled_tokens=0, extras=False, prepared=True)
    complete = run_cell(caller, cell, plan, box, file)
    if "cost" not in cell:
        cell["cost"] = _cost(subject, caller, clock)
        file.save()
    print(f"{key}: {len(cell['rows'])} pairs, {'complete' if complete else 'to be continued'}", flush=True)


def _cost(subject: Subject, caller: Caller, clock: Clock) -> dict[str, float]:
    return {
        "hooked_call_us": hooked_call_us(clock, subject.model),
        "token_mark_us": token_mark_us(clock, subject.model.device),
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
    head = [
        "model:tiles",
        "weights",
        "pairs",
        "bare call",
        "hooked calls, each",
        "token marks, each",
        "taken out",
        "share",
    ]
    rows = [[*head, "measured / bare", "prepared / bare", "A/A", "whole call / bare"]]
    for key, cell in cells.items():
        if "cost" not in cell or not cell.get("rows"):
            continue
        cost, bare = cell["cost"], [row["bare_ms"] for row in cell["rows"]]
        rows.append(
            [
                key,
                f"{cell['parameters'] / 1e6:.1f} M",
                str(len(bare)),
                f"{median(bare):.1f} ms",
                f"{cost['hooks'] / 2:g}, {cost['hooked_call_us']:.1f} µs",
                f"{cell['new_tokens']}, {cost['token_mark_us']:.1f} µs",
                f"{cost['removing_us']:.0f} µs" if "removing_us" in cost else "not measured",
                f"{100 * share(cell):.3f} %",
                format_estimate(ratio_interval([row["timing"]["total_ms"] for row in cell["rows"]], bare)),
                _prepared(cell["rows"]),
                again_ratio(cell["rows"]),
                format_estimate(ratio_interval([row["whole_ms"] for row in cell["rows"]], bare)),
            ]
        )
    return markdown_table(rows)


def _prepared(rows: list[dict[str, Any]]) -> str:
    both = [row for row in rows if "prepared_ms" in row]
    if not both:
        return "not measured"
    return format_estimate(ratio_interval([row["prepared_ms"] for row in both], [row["bare_ms"] for row in both]))


if __name__ == "__main__":
    sys.exit(main())
