"""Which knobs pay on this hardware? Prefill and decode time of each knob value over those of full, at real sizes.

``python -m benchmarks.knob_effects --device cuda --seconds 300`` executes, for each cell ``model:tiles``, full and one
value of one knob at a time, all of them once in each block, in random order, with answers of equal length. Ratios are
medians over blocks of value / full, with distribution-free 95 % intervals. The work that each value leaves is counted
in calls of its own (``chronostat.measure.work``).

Random models have no processor, so ``vision_tokens`` stands for ready batches of fewer tiles of the same image size:
what the knob does through the processor, without its preprocessing. Quality has no meaning here. Raw values go to
``knob_effects.json``; for a model with a processor there is also ``chronostat knobs MODEL``.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.kit.batches import Batch
from benchmarks.kit.blocks import Row, dropping, fill_rows, shuffled
from benchmarks.kit.cells import Cell
from benchmarks.kit.engines import timing_of
from benchmarks.kit.estimates import format_estimate, markdown_table, ratio_interval
from benchmarks.kit.models import BuiltModel
from benchmarks.kit.question import Question, Work, add_blocks
from chronostat.errors import KnobError
from chronostat.execution.execute import BatchRequest
from chronostat.knobs.registry import find_knob
from chronostat.measure.work import counted_work
from chronostat.records import Estimate, Setting, StageTiming

CELLS = "internvl-moe-30b:5,qwen2.5-vl-7b:5,internvl-moe-30b:13,qwen2.5-vl-7b:13"
FULL = "full"
KINDS = ("prefill_ms", "decode_ms_per_token", "total_ms")
KEPT = ("prefill_ms", "vision_ms", "llm_prefill_ms", "decode_ms_per_token", "total_ms")
NO_EFFECT = 0.02  # a ratio whose interval lies within 1 +- this is no saving worth a name


class Arm(NamedTuple):
    """One value of one knob."""

    tiles: int
    setting: Setting


def arms_of(built: BuiltModel, tiles: int, fewer: list[int]) -> tuple[dict[str, Arm], dict[str, str]]:
    """Full first, then each value of each knob that the model has; and for each absent knob the reason."""
    arms = {FULL: Arm(tiles, Setting())}
    arms |= {f"vision_tokens: {count} tiles": Arm(count, Setting()) for count in fewer if count < tiles}
    absent: dict[str, str] = {}
    for name in ("moe_topk", "block_skip"):
        try:
            knob = find_knob(name, built.model, built.processor)
        except KnobError as error:
            absent[name] = str(error)
            continue
        for value in knob.levels[1:]:
            label = f"{len(value)} blocks" if isinstance(value, tuple) else str(value)
            arms[f"{name}: {label}"] = Arm(tiles, Setting({name: value}))
    return arms, absent


class Runner:
    """Executes arms of one model with answers of one length."""

    def __init__(self, built: BuiltModel, arms: dict[str, Arm], new_tokens: int) -> None:
        self._built, self._arms, self._new_tokens = built, arms, new_tokens
        self._batches: dict[int, Batch] = {count: built.batch(count) for count in {arm.tiles for arm in arms.values()}}

    def timing(self, label: str) -> StageTiming:
        """One execution.

        Raises:
            MeasurementError: its stages were not seen, or its answer has another length.
        """
        arm = self._arms[label]
        request = BatchRequest(batch=self._batches[arm.tiles], id="benchmark")
        return timing_of(self._built, request, arm.setting, self._new_tokens, label)

    def work(self, label: str) -> dict[str, Any]:
        """What one execution did, counted."""
        with counted_work(self._built.model) as works:
            self.timing(label)
        return asdict(works[0])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of this benchmark."""
    add_blocks(parser, 12, "executions of each arm")
    parser.add_argument("--fewer-tiles", default="5,1", help="tiles that stand for vision_tokens (default 5,1)")


def measure(work: Work) -> None:
    """What each value does, counted, then blocks of all values."""
    started_s = perf_counter()
    options, built = work.options, work.built
    arms, absent = arms_of(built, work.tiles, [int(count) for count in options.fewer_tiles.split(",") if count])
    settings = {label: f"{arm.tiles} tiles, {arm.setting}" for label, arm in arms.items()}
    cell = work.open(settings=settings, parameters=built.parameters)
    cell["absent"] = absent
    runner = Runner(built, arms, options.tokens)
    for label in arms:  # each arm warms up its own kernels; the counted call is a second one
        runner.timing(label)
    if "work" not in cell:
        cell["work"] = {label: runner.work(label) for label in arms}
    block = dropping(cell, options.blocks, lambda index: _block(runner, arms, index))
    fill_rows(cell, options.blocks, work.box, work.file, block)
    taken_s = perf_counter() - started_s
    work.say(f"{len(cell['rows'])} blocks, {len(cell['dropped'])} dropped, {taken_s:.0f} s")


def _block(runner: Runner, labels: Iterable[str], index: int) -> Row:
    timings = {label: runner.timing(label) for label in shuffled(labels, 2, index)}
    return {label: {kind: getattr(timing, kind) for kind in KEPT} for label, timing in timings.items()}


def table(cells: dict[str, Cell]) -> str:
    """One row for each value of each cell."""
    head = [
        "model:tiles",
        "value",
        "image tokens",
        "experts per token",
        "blocks",
        "prefill",
        "decode per token",
        "total",
    ]
    rows = [[*head, "pays"]]
    for key, cell in cells.items():
        found = cell.get("rows", [])
        if not found:
            continue
        for label in cell["settings"]:
            work = cell["work"][label]
            counts = [work["image_tokens"], work["experts_per_token"], work["blocks_run"]]
            rows.append([key, label, *("" if n is None else f"{n:g}" for n in counts), *_cells_of(found, label)])
    failed = [f"\n{key} failed: {cell['failed']}" for key, cell in cells.items() if "failed" in cell]
    return markdown_table(rows) + "".join(failed)


def _cells_of(rows: list[dict[str, Any]], label: str) -> list[str]:
    if label == FULL:
        return [*(f"{median(row[FULL][kind] for row in rows):.2f} ms" for kind in KINDS), ""]
    ratios = {
        kind: ratio_interval([row[label][kind] for row in rows], [row[FULL][kind] for row in rows]) for kind in KINDS
    }
    return [*(format_estimate(ratio) for ratio in ratios.values()), _verdict(ratios)]


def _verdict(ratios: dict[str, Estimate]) -> str:
    """Where a value saves time, in words; ``no`` only where the intervals leave no room for a saving."""
    words = {"prefill_ms": "prefill", "decode_ms_per_token": "decode"}
    saved = [word for kind, word in words.items() if ratios[kind].high < 1 - NO_EFFECT]
    slower = [word for kind, word in words.items() if ratios[kind].low > 1 + NO_EFFECT]
    excluded = all(ratios[kind].low >= 1 - NO_EFFECT for kind in words)  # a bound that too few blocks give is NaN
    pays = f"yes, in {' and '.join(saved)}" if saved else "no" if excluded else "undecided"
    return "; ".join([pays, *(f"slower in {word}" for word in slower)])


KNOB_EFFECTS = Question(
    name="knob_effects",
    text=__doc__,
    cells=CELLS,
    tokens=16,
    add_options=add_options,
    measure=measure,
    table=table,
)

if __name__ == "__main__":
    sys.exit(KNOB_EFFECTS.main())
