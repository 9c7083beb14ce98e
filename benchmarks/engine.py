"""What does the graph engine save? The same requests eagerly and replayed, interleaved in one run.

``python -m benchmarks.engine --device cuda --seconds 300`` executes, for each cell ``model:tiles``, each setting by
both engines once in each block, in random order, with answers of equal length. Ratios are medians over blocks of graph
/ eager, with distribution-free 95 % intervals. The last column is the device time of the captured forwards alone, each
between two events, median of 20. Each arm ran twice before. Raw values go to ``engine.json``.
"""

import argparse
import sys
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.kit.blocks import dropping, fill_rows
from benchmarks.kit.cells import Cell
from benchmarks.kit.engines import ENGINES, LATENCIES, Arm, Runner
from benchmarks.kit.estimates import format_estimate, markdown_table, ratio_interval
from benchmarks.kit.question import Question, Work, add_blocks
from chronostat.engine import graphed

CELLS = "internvl-moe-30b:5,internvl-moe-30b:1,qwen2.5-vl-7b:5,qwen2.5-vl-7b:1"
SETTINGS = "full"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of this benchmark."""
    add_blocks(parser, 12, "executions of each arm")
    parser.add_argument("--settings", default=SETTINGS, help="settings, with ; between them (default full)")


def measure(work: Work) -> None:
    """Capture what each setting needs, replay it alone, then blocks of all settings by both engines."""
    started_s = perf_counter()
    options, built = work.options, work.built
    settings = options.settings.split(";")
    arms = {arm.label: arm for setting in settings for arm in (Arm(engine, setting) for engine in ENGINES)}
    cell = work.open(settings=settings, parameters=built.parameters)
    with graphed(built.model, padding=0) as engine:  # one shape, again and again
        runner = Runner(built, work.tiles, options.tokens, engine)
        cell["replays_ms"], cell["captures_ms"] = {}, {}
        for arm in arms.values():
            before_s = perf_counter()
            runner.timing(arm)
            first_ms = (perf_counter() - before_s) * 1e3
            runner.timing(arm)
            if arm.engine == "graph":
                cell["captures_ms"][arm.setting] = first_ms
                cell["replays_ms"][arm.setting] = runner.replays_ms() if options.device != "cpu" else {}
        block = dropping(cell, options.blocks, lambda index: runner.block(arms, index))
        fill_rows(cell, options.blocks, work.box, work.file, block)
    taken_s = perf_counter() - started_s
    work.say(f"{len(cell['rows'])} blocks, {len(cell['dropped'])} dropped, {taken_s:.0f} s")


def table(cells: dict[str, Cell]) -> str:
    """One row for each setting of each cell: eager and graph in milliseconds, their ratio, and the bare replays."""
    rows = [["model:tiles", "setting", *LATENCIES, "replayed prefill, decode"]]
    for key, cell in cells.items():
        found = cell.get("rows", [])
        if not found:
            continue
        for setting in cell["settings"]:
            replays = cell["replays_ms"].get(setting, {})
            bare = ", ".join(f"{replays[step]:.2f}" for step in ("prefill", "decode") if step in replays)
            rows.append([key, setting, *(_compared(found, setting, kind) for kind in LATENCIES), bare])
    failed = [f"\n{key} failed: {cell['failed']}" for key, cell in cells.items() if "failed" in cell]
    return markdown_table(rows) + "".join(failed)


def _compared(rows: list[dict[str, Any]], setting: str, kind: str) -> str:
    eager, graph = ([row[Arm(engine, setting).label][kind] for row in rows] for engine in ENGINES)
    ratio = format_estimate(ratio_interval(graph, eager))
    return f"{median(eager):.2f} -> {median(graph):.2f} ({ratio})"


ENGINE = Question(
    name="engine", text=__doc__, cells=CELLS, tokens=32, add_options=add_options, measure=measure, table=table
)

if __name__ == "__main__":
    sys.exit(ENGINE.main())
