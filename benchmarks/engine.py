"""What the graph engine saves: the same requests eagerly and replayed, interleaved in one run.

``python -m benchmarks.engine --device cuda --seconds 300`` executes, for each cell ``model:tiles``, each setting by
both engines once in each block, in random order, with answers of equal length. Ratios are medians over blocks of graph
/ eager, with distribution-free 95 % intervals. The last column is the device time of the captured forwards alone, each
between two events, median of 20. Each arm ran twice before. Raw values go to ``engine.json``.
"""

import argparse
import sys
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

from benchmarks.cells import Cell, CellFile, TimeBox, arguments
from benchmarks.common import format_estimate, markdown_table, ratio_interval
from benchmarks.models import Subject
from benchmarks.progress import fill_rows, run_benchmark
from chronostat.engine import Engine, graphed
from chronostat.errors import MeasurementError
from chronostat.execution import BatchRequest, execute
from chronostat.records import Setting, StageTiming

CELLS = "internvl-moe-30b:5,internvl-moe-30b:1,qwen2.5-vl-7b:5,qwen2.5-vl-7b:1"
SETTINGS = "full"
KINDS = ("prefill_ms", "llm_prefill_ms", "decode_ms_per_token", "total_ms")
ENGINES = ("eager", "graph")
_REPLAYS = 20


class Arm(NamedTuple):
    """One setting by one engine."""

    engine: str
    setting: str

    @property
    def label(self) -> str:
        """Its name in the rows."""
        return f"{self.engine}: {self.setting}"


class Runner:
    """Executes arms of one model with answers of one length."""

    def __init__(self, subject: Subject, tiles: int, new_tokens: int, engine: Engine) -> None:
        self._subject, self._new_tokens, self._engine = subject, new_tokens, engine
        self._request = BatchRequest(batch=subject.batch(tiles), id="benchmark")

    def timing(self, arm: Arm) -> StageTiming:
        """One execution.

        Raises:
            MeasurementError: its stages were not seen, its answer has another length, or it ran by another engine.
        """
        if arm.engine == "eager":
            with self._engine.paused():
                return self._execute(arm)
        timing = self._execute(arm)
        ran = self._engine.last
        if ran is None or ran.way != "graph":
            raise MeasurementError(f"{arm.label} ran eagerly: {ran and ran.reason}")
        return timing

    def replays_ms(self) -> dict[str, float]:
        """Device time of what the last execution replayed, alone: medians."""
        found: dict[str, float] = {}
        for program in self._engine.kept[-2:]:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * _REPLAYS)]
            program.room.position.fill_(program.room.length - 1)
            for start, end in zip(events[::2], events[1::2], strict=True):
                start.record()
                program.replay.run()
                end.record()
            torch.cuda.synchronize()
            found[program.step] = median(s.elapsed_time(e) for s, e in zip(events[::2], events[1::2], strict=True))
        return found

    def _execute(self, arm: Arm) -> StageTiming:
        execution = execute(
            self._subject.model,
            self._request,
            setting=Setting() if arm.setting == "full" else Setting.parse(arm.setting),
            max_new_tokens=self._new_tokens,
            generation_config=GenerationConfig(do_sample=False),
        )
        timing = execution.timing
        assert timing is not None, "execute() raises where it does not measure"
        if timing.source != "measured" or timing.new_tokens != self._new_tokens:
            raise MeasurementError(f"{arm.label}: {timing.new_tokens} tokens; {timing.unseen}")
        return timing


def main() -> int:
    """Measure what is missing, print the table; 1 if a cell failed."""
    parser = arguments(__doc__)
    parser.add_argument("--cells", default=CELLS, help=f"model:tiles, in this order (default {CELLS})")
    parser.add_argument("--settings", default=SETTINGS, help="settings, with ; between them (default full)")
    parser.add_argument("--blocks", type=int, default=12, help="executions of each arm (default 12)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer (default 32)")
    options = parser.parse_args()
    return run_benchmark(
        "engine",
        options,
        is_complete=lambda cell, model, tiles: len(cell.get("rows", [])) >= options.blocks,
        measure=partial(_measure_cell, options),
        table=table,
    )


def _measure_cell(
    options: argparse.Namespace, subject: Subject, tiles: int, key: str, file: CellFile, box: TimeBox
) -> None:
    started_s = perf_counter()
    settings = options.settings.split(";")
    arms = [Arm(engine, setting) for setting in settings for engine in ENGINES]
    cell = file.open(
        key, subject.model, tiles=tiles, new_tokens=options.tokens, settings=settings, parameters=subject.parameters
    )
    with graphed(subject.model, padding=0) as engine:  # one shape, again and again
        runner = Runner(subject, tiles, options.tokens, engine)
        cell["replays_ms"], cell["captures_ms"] = {}, {}
        for arm in arms:
            before_s = perf_counter()
            runner.timing(arm)
            first_ms = (perf_counter() - before_s) * 1e3
            runner.timing(arm)
            if arm.engine == "graph":
                cell["captures_ms"][arm.setting] = first_ms
                cell["replays_ms"][arm.setting] = runner.replays_ms() if options.device != "cpu" else {}
        fill_rows(cell, options.blocks, box, file, lambda index: _block(runner, arms, index))
    print(f"{key}: {len(cell['rows'])} blocks, {perf_counter() - started_s:.0f} s", flush=True)


def _block(runner: Runner, arms: list[Arm], index: int) -> dict[str, dict[str, float | None]]:
    row: dict[str, dict[str, float | None]] = {}
    for number in np.random.default_rng([2, index]).permutation(len(arms)):
        arm = arms[int(number)]
        timing = runner.timing(arm)
        row[arm.label] = {kind: getattr(timing, kind) for kind in (*KINDS, "vision_ms")}
    return row


def table(cells: dict[str, Cell]) -> str:
    """One row for each setting of each cell: eager and graph in milliseconds, their ratio, and the bare replays."""
    rows = [["model:tiles", "setting", *KINDS, "replayed prefill, decode"]]
    for key, cell in cells.items():
        found = cell.get("rows", [])
        if not found:
            continue
        for setting in cell["settings"]:
            replays = cell["replays_ms"].get(setting, {})
            bare = ", ".join(f"{replays[step]:.2f}" for step in ("prefill", "decode") if step in replays)
            rows.append([key, setting, *(_compared(found, setting, kind) for kind in KINDS), bare])
    failed = [f"\n{key} failed: {cell['failed']}" for key, cell in cells.items() if "failed" in cell]
    return markdown_table(rows) + "".join(failed)


def _compared(rows: list[dict[str, Any]], setting: str, kind: str) -> str:
    eager, graph = ([row[Arm(engine, setting).label][kind] for row in rows] for engine in ENGINES)
    ratio = format_estimate(ratio_interval(graph, eager))
    return f"{median(eager):.2f} -> {median(graph):.2f} ({ratio})"


if __name__ == "__main__":
    sys.exit(main())
