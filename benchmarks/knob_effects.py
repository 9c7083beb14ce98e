"""Which knobs pay on this hardware: prefill and decode time of each knob value over those of full, at real sizes.

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
from dataclasses import asdict
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from transformers import GenerationConfig

from benchmarks.cells import Cell, CellFile, TimeBox, arguments
from benchmarks.common import format_estimate, markdown_table, ratio_interval
from benchmarks.models import Batch, Subject
from benchmarks.progress import fill_rows, run_benchmark
from chronostat.errors import KnobError, MeasurementError
from chronostat.execution import BatchRequest, execute
from chronostat.knobs import find_knob
from chronostat.measure.work import counted_work
from chronostat.records import Estimate, Setting, StageTiming

CELLS = "internvl-moe-30b:5,qwen2.5-vl-7b:5,internvl-moe-30b:13,qwen2.5-vl-7b:13"
FULL = "full"
KINDS = ("prefill_ms", "decode_ms_per_token", "total_ms")
NO_EFFECT = 0.02  # a ratio whose interval lies within 1 +- this is no saving worth a name


class Arm(NamedTuple):
    """One value of one knob."""

    tiles: int
    setting: Setting


def arms_of(subject: Subject, tiles: int, fewer: list[int]) -> tuple[dict[str, Arm], dict[str, str]]:
    """Full first, then each value of each knob that the model has; and for each absent knob the reason."""
    arms = {FULL: Arm(tiles, Setting())}
    arms |= {f"vision_tokens: {count} tiles": Arm(count, Setting()) for count in fewer if count < tiles}
    absent: dict[str, str] = {}
    for name in ("moe_topk", "block_skip"):
        try:
            knob = find_knob(name, subject.model, subject.processor)
        except KnobError as error:
            absent[name] = str(error)
            continue
        for value in knob.levels[1:]:
            label = f"{len(value)} blocks" if isinstance(value, tuple) else str(value)
            arms[f"{name}: {label}"] = Arm(tiles, Setting({name: value}))
    return arms, absent


class Runner:
    """Executes arms of one model with answers of one length."""

    def __init__(self, subject: Subject, arms: dict[str, Arm], new_tokens: int) -> None:
        self._subject, self._arms, self._new_tokens = subject, arms, new_tokens
        self._batches: dict[int, Batch] = {
            count: subject.batch(count) for count in {arm.tiles for arm in arms.values()}
        }

    def timing(self, label: str) -> StageTiming:
        """One execution.

        Raises:
            MeasurementError: its stages were not seen, or its answer has another length.
        """
        arm = self._arms[label]
        request = BatchRequest(batch=self._batches[arm.tiles], id="benchmark")
        execution = execute(
            self._subject.model,
            request,
            setting=arm.setting,
            max_new_tokens=self._new_tokens,
            generation_config=GenerationConfig(do_sample=False),
        )
        timing = execution.timing
        assert timing is not None, "execute() raises where it does not measure"
        if timing.source != "measured" or timing.new_tokens != self._new_tokens:
            raise MeasurementError(f"{label}: {timing.new_tokens} tokens; {timing.unseen}")
        return timing

    def work(self, label: str) -> dict[str, Any]:
        """What one execution did, counted."""
        with counted_work(self._subject.model) as works:
            self.timing(label)
        return asdict(works[0])


def main() -> int:
    """Measure what is missing, print the table; 1 if a cell failed."""
    parser = arguments(__doc__)
    parser.add_argument("--cells", default=CELLS, help=f"model:tiles, in this order (default {CELLS})")
    parser.add_argument("--blocks", type=int, default=12, help="executions of each arm (default 12)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each answer (default 16)")
    parser.add_argument("--fewer-tiles", default="5,1", help="tiles that stand for vision_tokens (default 5,1)")
    options = parser.parse_args()
    return run_benchmark(
        "knob_effects",
        options,
        is_complete=lambda cell, model, tiles: len(cell.get("rows", [])) >= options.blocks,
        measure=partial(_measure_cell, options),
        table=table,
    )


def _measure_cell(
    options: argparse.Namespace, subject: Subject, tiles: int, key: str, file: CellFile, box: TimeBox
) -> None:
    started_s = perf_counter()
    arms, absent = arms_of(subject, tiles, [int(count) for count in options.fewer_tiles.split(",") if count])
    settings = {label: f"{arm.tiles} tiles, {arm.setting}" for label, arm in arms.items()}
    cell = file.open(
        key, subject.model, tiles=tiles, new_tokens=options.tokens, settings=settings, parameters=subject.parameters
    )
    cell["absent"] = absent
    runner = Runner(subject, arms, options.tokens)
    for label in arms:  # each arm warms up its own kernels; the counted call is a second one
        runner.timing(label)
    if "work" not in cell:
        cell["work"] = {label: runner.work(label) for label in arms}
    fill_rows(cell, options.blocks, box, file, lambda index: _block(runner, list(arms), index))
    print(
        f"{key}: {len(cell['rows'])} blocks, {len(cell['dropped'])} dropped, {perf_counter() - started_s:.0f} s",
        flush=True,
    )


def _block(runner: Runner, labels: list[str], index: int) -> dict[str, dict[str, float | None]]:
    row: dict[str, dict[str, float | None]] = {}
    for label in np.random.default_rng([2, index]).permutation(labels):
        timing = runner.timing(str(label))
        row[str(label)] = {
            "prefill_ms": timing.prefill_ms,
            "vision_ms": timing.vision_ms,
            "llm_prefill_ms": timing.llm_prefill_ms,
            "decode_ms_per_token": timing.decode_ms_per_token,
            "total_ms": timing.total_ms,
        }
    return row


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


if __name__ == "__main__":
    sys.exit(main())
