"""What do fewer image tokens after the projector save, and what does choosing them cost?

``python -m benchmarks.image_keep --device cuda --seconds 330`` executes, for each cell ``model:tiles``, each setting
once in each block, in random order, by both engines, with answers of equal length. Ratios are medians over blocks of a
setting / full of the same engine, with distribution-free 95 % intervals. What choosing costs is timed alone: the device
time of the method on the cell's own features, median of 20 calls, as a share of the eager prefill that it is part of.
Raw values go to ``image_keep.json``.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.blocks import Row, dropping, fill_rows
from benchmarks.kit.cells import Cell
from benchmarks.kit.engines import ENGINES, LATENCIES, Arm, Runner
from benchmarks.kit.estimates import format_estimate, markdown_table, ratio_interval
from benchmarks.kit.models import BuiltModel
from benchmarks.kit.question import Question, Work, add_blocks
from chronostat.engine import graphed
from chronostat.knobs.registry import applied
from chronostat.measure.clock import clock_for
from chronostat.measure.work import counted_work
from chronostat.records import Setting
from chronostat.tokens.methods import METHODS
from chronostat.tokens.requests import Request

CELLS = "llava-1.5-7b:1,paligemma-3b:1,qwen2.5-vl-7b:5"
KEPT = "64"
_CHOICES = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of this benchmark."""
    add_blocks(parser, 12, "executions of each arm")
    parser.add_argument("--kept", default=KEPT, help=f"numbers of image tokens that are kept (default {KEPT})")
    parser.add_argument("--methods", default=",".join(METHODS), help="names (default: all that the model has)")


def settings_of(built: BuiltModel, methods: str, kept: str) -> list[str]:
    """Full, and each method with each number; a method that the model refuses is left out."""
    names = [name for name in methods.split(",") if METHODS[name].objection(built.model) is None]
    return ["full", *(f"image_keep={name}:{count}" for count in kept.split(",") for name in names)]


def measure(work: Work) -> None:
    """Count, time the choosing alone, capture what each setting needs, then blocks of all arms."""
    started_s = perf_counter()
    options, built = work.options, work.built
    settings = settings_of(built, options.methods, options.kept)
    arms = {arm.label: arm for setting in settings for arm in (Arm(engine, setting) for engine in ENGINES)}
    cell = work.open(settings=settings, parameters=built.parameters)
    with graphed(built.model, padding=0) as engine:  # one shape a setting, again and again
        runner = Runner(built, work.tiles, options.tokens, engine)
        with engine.paused(), counted_work(built.model) as works:
            for setting in settings:
                runner.timing(Arm("eager", setting))
        cell["image_tokens"] = {name: done.image_tokens for name, done in zip(settings, works, strict=True)}
        cell["choosing_ms"] = {
            setting: _choosing_ms(built, work.tiles, setting, options.tokens) for setting in settings[1:]
        }
        for arm in arms.values():
            for _ in range(2):
                runner.timing(arm)
        block = dropping(cell, options.blocks, lambda index: runner.block(arms, index))
        fill_rows(cell, options.blocks, work.box, work.file, block)
    taken_s = perf_counter() - started_s
    work.say(f"{len(cell['rows'])} blocks, {len(cell['dropped'])} dropped, {taken_s:.0f} s")


def _choosing_ms(built: BuiltModel, tiles: int, setting: str, new_tokens: int) -> float:
    """Time of choosing alone: the call in which the knob chooses is seen once and repeated outside ``generate()``."""
    calls: list[Callable[[], Any]] = []
    choose = Request.choose

    def seen(self: Request, pictures: Sequence[Tensor], sizes: Any) -> Any:  # noqa: ANN401 - tables of sizes
        kept = [picture.clone() for picture in pictures]
        calls.append(lambda: choose(self, kept, sizes))
        return choose(self, pictures, sizes)

    Request.choose = seen
    try:
        with applied(Setting.parse(setting), built.model, built.processor):
            generative: Any = built.model
            generative.generate(**built.batch(tiles), max_new_tokens=new_tokens)
    finally:
        Request.choose = choose
    clock = clock_for(built.model.device)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(_CHOICES):
            clock.synchronize()
            clock.restart()
            start = clock.mark()
            calls[0]()
            end = clock.mark()
            clock.synchronize()
            times.append(clock.between_ms(start, end))
    return median(times)


def table(cells: dict[str, Cell]) -> str:
    """One row for each setting of each cell: eager and graph, each against full by the same engine."""
    rows = [["model:tiles", "setting", "image tokens", "choosing", *(f"{e}: {k}" for e in ENGINES for k in LATENCIES)]]
    for key, cell in cells.items():
        for setting in cell["settings"] if cell.get("rows") else ():
            shown = [_shown(cell["rows"], engine, setting, kind) for engine in ENGINES for kind in LATENCIES]
            rows.append([key, setting, str(cell["image_tokens"][setting]), _choosing(cell, setting), *shown])
    failed = [f"\n{key} failed: {cell['failed']}" for key, cell in cells.items() if "failed" in cell]
    return markdown_table(rows) + "".join(failed)


def _shown(rows: list[Row], engine: str, setting: str, kind: str) -> str:
    """Milliseconds of full; of any other setting the ratio to it."""
    values, full = ([row[Arm(engine, each).label][kind] for row in rows] for each in (setting, "full"))
    return f"{median(full):.2f} ms" if setting == "full" else format_estimate(ratio_interval(values, full))


def _choosing(cell: Cell, setting: str) -> str:
    """Milliseconds, and the share of the eager prefill."""
    if setting == "full":
        return ""
    choosing_ms = cell["choosing_ms"][setting]
    prefill_ms = median(row[Arm("eager", setting).label]["prefill_ms"] for row in cell["rows"])
    return f"{choosing_ms:.3f} ms, {100 * choosing_ms / prefill_ms:.1f} %"


IMAGE_KEEP = Question(
    name="image_keep", text=__doc__, cells=CELLS, tokens=16, add_options=add_options, measure=measure, table=table
)

if __name__ == "__main__":
    sys.exit(IMAGE_KEEP.main())
