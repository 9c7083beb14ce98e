"""How resumable benchmarks go on: cell by cell with one model in memory, and block by block inside a cell."""

import argparse
import gc
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from benchmarks.cells import Cell, CellFile, TimeBox, commit_of, dtype_for, split_key
from benchmarks.models import Subject, build
from chronostat.errors import ChronostatError, MeasurementError
from chronostat.measure.steady import steady

BUILD_S = 20.0  # the least that is worth building a model of real size for


def run_benchmark(
    name: str,
    options: argparse.Namespace,
    *,
    is_complete: Callable[[Cell, str, int], bool],
    measure: Callable[[Subject, int, str, CellFile, TimeBox], None],
    table: Callable[[dict[str, Cell]], str],
    mode: str = "",
    default_tiles: int = 5,
) -> int:
    """Measure the cells ``model:tiles`` of the options as far as the time goes, print the table; 1 if a cell failed.

    Args:
        name: of the benchmark.
        options: those of ``arguments``, and ``cells``.
        is_complete: whether nothing of a cell is missing, from the cell, the model's name and the tiles.
        measure: measures what is missing of a model's cell, from the model, tiles, the cell's name in the file, the
            file and the time for all.
        table: what is printed of all cells that the file holds.
        mode: what else belongs to the cells' names, such as ``compiled``.
        default_tiles: of a cell that names none.
    """
    file, box = CellFile(name, options.out, commit_of(options)), TimeBox(options.seconds)
    torch.set_num_threads(1)
    subject: Subject | None = None
    failed = False
    for key in () if options.show else options.cells.split(","):
        model, tiles = split_key(key, tiles=default_tiles)
        cell_name = " ".join(part for part in (f"{model}:{tiles}", mode, accelerator(options.device)) if part)
        if is_complete(file.cells.get(cell_name, {}), model, tiles):
            print(f"{key}: complete", flush=True)
            continue
        if not box.allows(BUILD_S if options.device == "cuda" else 1.0):
            print(f"no time for {key}", flush=True)
            continue
        try:
            if subject is None or subject.name != model:
                subject = None  # the earlier model's memory is needed
                gc.collect()
                torch.cuda.empty_cache()
                subject = _built(model, options.device)
            with steady():
                measure(subject, tiles, cell_name, file, box)
        except (ChronostatError, RuntimeError) as error:  # torch raises RuntimeError; the next cell may still do
            failed = True
            file.cells.setdefault(cell_name, {})["failed"] = f"{type(error).__name__}: {error}"
            file.save()
            print(f"{key} failed: {error}", file=sys.stderr, flush=True)
    print(table(file.cells))
    return int(failed)


def accelerator(device: str) -> str:
    """Short name of the GPU, such as ``H100``: cells of unlike GPUs stand beside each other. Empty for a CPU."""
    return torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0] if device == "cuda" else ""


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
