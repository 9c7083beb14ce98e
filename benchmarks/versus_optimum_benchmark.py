"""Do other tools find the same? One model, request and device measured by three of them, interleaved in one run.

``python -m benchmarks.versus_optimum_benchmark [--cells bundled:4] [--blocks N]``. In each block, in random order:

* ``chronostat``: ``measure_generate`` with N new tokens, and once more with one token;
* ``optimum-benchmark``: its definitions around the same ``generate()``: prefill from the entry to the first call of a
  logits processor, decode from there to the return, per token between these calls. Where the package can be imported
  its own tracker class is driven, made new for each call (one that is kept mixes the tokens of all calls); otherwise
  the class here reads the same moments, and the output says so. The tool itself runs all of a session's warm-ups and
  repeats of one configuration in a row, and makes its own random inputs;
* ``torch.utils.benchmark``: a ``Timer`` around ``generate()`` with one new token. Each ``timeit(1)`` runs it three
  times: two are its warm-up.

Agreement is judged on the medians of paired ratios: within 5 % on a CPU, 2 % on a GPU. Where the definitions differ the
difference is explained from our own stages, and what remains is judged. Raw values go to
``versus_optimum_benchmark.json``.
"""

import importlib
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.kit.blocks import Row, dropping, fill_rows, shuffled
from benchmarks.kit.calls import Caller, plain_timing
from benchmarks.kit.cells import Cell
from benchmarks.kit.estimates import format_estimate, markdown_table, ratio_interval, value_at
from benchmarks.kit.pairs import parts_of, warm_up
from benchmarks.kit.question import Question, Work, add_blocks
from chronostat.errors import MeasurementError
from chronostat.measure.clock import Clock, Mark

OPTIMUM, OWN_READING = "optimum-benchmark's tracker", "optimum-benchmark's definitions, read by a class of our own"
AGREEMENT = {"cpu": 0.05, "cuda": 0.02}


class LogitsMarks(LogitsProcessor):
    """Takes a mark at each call: the moments that optimum-benchmark's tracker reads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.marks: list[Mark] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores as they are."""
        self.marks.append(self._clock.mark())
        return scores


def optimum_tracker() -> Any:  # noqa: ANN401 - a class of a package that may be there
    """The package's tracker class, or None where it cannot be imported."""
    try:
        module = importlib.import_module("optimum_benchmark.trackers.latency")
    except ImportError:
        return None
    return module.PerTokenLatencySessionTrackerLogitsProcessor


def by_optimum(caller: Caller) -> dict[str, float]:
    """Prefill, decode and mean time per token in milliseconds, by optimum-benchmark's definitions."""
    tracker_class = optimum_tracker()
    return _own_reading(caller) if tracker_class is None else _driven(tracker_class, caller)


def _driven(tracker_class: Any, caller: Caller) -> dict[str, float]:  # noqa: ANN401
    tracker = tracker_class(device=caller.built.model.device.type, backend="pytorch")
    with tracker.session(), tracker.track():
        caller.generate(logits_processor=LogitsProcessorList([tracker]))
    return {
        "prefill_ms": 1e3 * tracker.get_prefill_latency().mean,
        "decode_ms": 1e3 * tracker.get_decode_latency().mean,
        "per_token_ms": 1e3 * tracker.get_per_token_latency().mean,
    }


def _own_reading(caller: Caller) -> dict[str, float]:
    clock = caller.clock
    processor = LogitsMarks(clock)
    clock.restart()
    clock.synchronize()
    start = clock.mark()
    caller.generate(logits_processor=LogitsProcessorList([processor]))
    end = clock.mark()
    clock.synchronize()
    first, last = processor.marks[0], processor.marks[-1]
    return {
        "prefill_ms": clock.between_ms(start, first),
        "decode_ms": clock.between_ms(first, end),
        "per_token_ms": clock.between_ms(first, last) / (len(processor.marks) - 1),
    }


class Comparison(NamedTuple):
    """Two numbers of one block that are held against each other.

    Attributes:
        theirs: what the other tool says; ``arm.field``.
        ours: ours, likewise.
        explained: parts of a call (``Caller.parts``) that ours holds less than theirs, as the definitions have it.
    """

    what: str
    theirs: str
    ours: str
    explained: tuple[str, ...] = ()
    sign: int = 1


COMPARISONS = (
    Comparison("generate() of one token: torch Timer / total_ms", "timer.total_ms", "one.total_ms"),
    Comparison("per token: optimum / decode_ms_per_token", "optimum.per_token_ms", "chronostat.per_token_ms"),
    Comparison("prefill: optimum / ttft_ms", "optimum.prefill_ms", "chronostat.ttft_ms", ("first_token",), -1),
    Comparison("prefill: optimum / prefill_ms", "optimum.prefill_ms", "chronostat.prefill_ms", ("set_up", "between")),
    Comparison("decode: optimum / decode_ms", "optimum.decode_ms", "chronostat.decode_ms", ("first_token", "after")),
    Comparison("generate() of one token: torch Timer / ttft_ms", "timer.total_ms", "chronostat.ttft_ms", ("after",)),
)


def measure(work: Work) -> None:
    """The parts of a call, then blocks of all tools."""
    caller = work.caller()
    cell = work.open(
        image_tokens=caller.image_tokens,
        optimum=OWN_READING if optimum_tracker() is None else OPTIMUM,
    )
    warm_up(caller)
    if "parts" not in cell:
        cell["parts"] = parts_of(caller)
    blocks = work.options.blocks
    fill_rows(cell, blocks, work.box, work.file, dropping(cell, blocks, lambda index: _block(caller, index)))
    work.say(f"{len(cell['rows'])} blocks")


def _block(caller: Caller, index: int) -> Row:
    arms: dict[str, Callable[[], dict[str, Any]]] = {
        "chronostat": lambda: _by_us(caller),
        "one": lambda: _by_us(caller, new_tokens=1),
        "optimum": lambda: by_optimum(caller),
        "timer": lambda: _by_timer(caller),
    }
    return {arm: arms[arm]() for arm in shuffled(arms, 3, index)}


def _by_us(caller: Caller, new_tokens: int | None = None) -> dict[str, Any]:
    row = plain_timing(caller.measured(new_tokens=new_tokens)[0])
    if "source" in row:
        raise MeasurementError(f"the stages were not seen: {row['unseen']}")
    return {**row, "per_token_ms": row["decode_ms"] / row["decode_steps"] if row["decode_steps"] else None}


def _by_timer(caller: Caller) -> dict[str, float]:
    timer = Timer("generate()", globals={"generate": lambda: caller.generate(1)}, num_threads=1)
    return {"total_ms": 1e3 * timer.timeit(1).median}


def table(cells: dict[str, Cell]) -> str:
    """One row for each comparison of each cell, and how optimum-benchmark's numbers were taken."""
    rows = [["model:tiles", "what", "theirs", "ours", "theirs / ours", "explained by definition", "remains", "verdict"]]
    for key, cell in cells.items():
        if cell.get("rows"):
            limit = AGREEMENT["cpu" if cell["conditions"]["device"] == "cpu" else "cuda"]
            rows += [[key, *_compared(cell, comparison, limit)] for comparison in COMPARISONS]
    notes = [
        f"\n{key}: by {cell['optimum']}; {len(cell['rows'])} blocks, {len(cell['dropped'])} dropped"
        for key, cell in cells.items()
        if "rows" in cell
    ]
    return markdown_table(rows) + "\n" + "".join(notes)


def _compared(cell: Cell, comparison: Comparison, limit: float) -> list[str]:
    theirs, ours = ([value_at(row, path) for row in cell["rows"]] for path in (comparison.theirs, comparison.ours))
    explained_ms = comparison.sign * sum(
        median(row[f"{name}_ms"] for row in cell["parts"]) for name in comparison.explained
    )
    plain = ratio_interval(theirs, ours)
    rest = ratio_interval(theirs, [value + explained_ms for value in ours])
    if abs(plain.point - 1) <= limit:
        verdict = "agree"
    else:
        verdict = "agree, less what the definition explains" if abs(rest.point - 1) <= limit else "DIFFER"
    words = " + ".join(comparison.explained)
    return [
        comparison.what,
        f"{median(theirs):.2f} ms",
        f"{median(ours):.2f} ms",
        format_estimate(plain),
        f"{words}: {explained_ms:+.2f} ms" if words else "same definition",
        f"{100 * (rest.point - 1):+.1f} %",
        verdict,
    ]


VERSUS = Question(
    name="versus_optimum_benchmark",
    text=__doc__,
    cells="bundled:4",
    tokens=32,
    default_tiles=4,
    add_options=lambda parser: add_blocks(parser, 20, "blocks of all arms"),
    measure=measure,
    table=table,
)

if __name__ == "__main__":
    sys.exit(VERSUS.main())
