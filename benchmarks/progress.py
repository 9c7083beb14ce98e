"""How resumable benchmarks go on: cell by cell with one model in memory, and block by block inside a cell."""

import argparse
import gc
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from benchmarks.cells import Cell, CellFile, TimeBox, dtype_for, split_key
from benchmarks.models import Subject, build
from chronostat.errors import ChronostatError, MeasurementError

BUILD_S = 20.0  # the least that is worth building a model of real size for


def measure_cells(
    options: argparse.Namespace,
    file: CellFile,
    box: TimeBox,
    *,
    key_of: Callable[[str, int], str],
    is_complete: Callable[[Cell, int], bool],
    measure: Callable[[Subject, int], None],
) -> int:
    """Measure the cells ``model:tiles`` of the options as far as the time goes; how many failed.

    Args:
        options: with ``cells`` and ``device``.
        file: keeps the cells.
        box: the time for all.
        key_of: name of a model's cell in the file, from model and tiles.
        is_complete: whether nothing of a cell is missing, from the cell and its tiles.
        measure: measures what is missing of a model's cell.
    """
    torch.set_num_threads(1)
    subject: Subject | None = None
    failed = 0
    for key in options.cells.split(","):
        name, tiles = split_key(key, tiles=5)
        if is_complete(file.cells.get(key_of(name, tiles), {}), tiles):
            print(f"{key}: complete", flush=True)
            continue
        if not box.allows(BUILD_S if options.device == "cuda" else 1.0):
            print(f"no time for {key}", flush=True)
            continue
        try:
            if subject is None or subject.name != name:
                subject = None  # the earlier model's memory is needed
                gc.collect()
                torch.cuda.empty_cache()
                subject = _built(name, options.device)
            measure(subject, tiles)
        except (ChronostatError, RuntimeError) as error:  # torch raises RuntimeError; the next cell may still do
            failed += 1
            file.cells.setdefault(key_of(name, tiles), {})["failed"] = f"{type(error).__name__}: {error}"
            file.save()
            print(f"{key} failed: {error}", file=sys.stderr, flush=True)
    return failed


def _built(name: str, device: str) -> Subject:
    started_s = perf_counter()
    subject = build(name, device, dtype_for(device))
    print(f"{name}: {subject.parameters / 1e9:.2f} G weights in {perf_counter() - started_s:.1f} s", flush=True)
    return subject


def fill_rows(cell: Cell, most: int, box: TimeBox, file: CellFile, block: Callable[[int], dict[str, Any]]) -> None:
    """Add a block after the other to the cell's rows, up to ``most`` or as far as the time goes.

    A block in which one call could not be measured is no row: it is kept under ``dropped`` with the reason.

    Raises:
        MeasurementError: more than ``most`` blocks were dropped.
    """
    rows: list[dict[str, Any]] = cell.setdefault("rows", [])
    dropped: list[str] = cell.setdefault("dropped", [])
    longest_s = 0.0
    while len(rows) < most and box.allows(1.2 * longest_s):
        started_s = perf_counter()
        try:
            rows.append(block(len(rows) + len(dropped)))
        except MeasurementError as error:
            dropped.append(str(error))
            if len(dropped) > most:
                raise
        longest_s = max(longest_s, perf_counter() - started_s)
        file.save(now=False)
    file.save()
