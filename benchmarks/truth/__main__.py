"""Measured calls against bare ones, and stages against the profiler's kernels, at real sizes.

``python -m benchmarks.truth --device cuda --seconds 500`` measures cell by cell, most valuable first, and goes on
where it stopped. A cell is ``model:tiles`` of ``benchmarks/models.py``. In each block a bare and a measured
``generate()`` run in random order, and in some of them a second bare one (A/A); all answers have the same number of
tokens, greedy. The ratios are medians of pairs with distribution-free 95 % intervals.

Beside the pairs, at the tiles that ``--extras`` names: where the time goes that is neither prefill nor decode; stages
against the kernels of ``torch.profiler`` in the same call, with idle gaps; what marks distort that wait for the device;
and whether marks on a wrong stream are caught. Raw values go to ``truth.json``.
"""

import argparse
import sys
from functools import partial
from time import perf_counter

from benchmarks.cells import CellFile, TimeBox, arguments
from benchmarks.models import Subject
from benchmarks.progress import run_benchmark
from benchmarks.truth.calls import Caller
from benchmarks.truth.cells import Plan, is_complete, run_cell
from benchmarks.truth.tables import tables
from chronostat.measure.clock import clock_for
from chronostat.models.prepare import count_image_tokens

CELLS = ",".join(
    f"{model}:{tiles}" for tiles in (5, 1, 13) for model in ("qwen2.5-vl-7b", "internvl-moe-30b", "molmo2-8b")
)


def main() -> int:
    """Measure what is missing, print the tables; 1 if a cell failed."""
    parser = arguments(__doc__)
    parser.add_argument("--cells", default=CELLS, help=f"model:tiles, in this order (default {CELLS})")
    parser.add_argument("--pairs", type=int, help="pairs for each cell (default 60 at 5 tiles, else 20)")
    parser.add_argument("--again-every", type=int, default=3, help="a second bare call in every so many blocks (3)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer (default 32)")
    parser.add_argument("--profiled-tokens", type=int, default=16, help="tokens of profiled answers (default 16)")
    parser.add_argument("--extras", default="5", help="tiles at which the extra calls are made (default 5)")
    parser.add_argument("--compiled", action="store_true", help="static cache: compiled decode; cells of their own")
    options = parser.parse_args()
    return run_benchmark(
        "truth",
        options,
        is_complete=lambda cell, _, tiles: is_complete(cell, _plan(tiles, options), options.device),
        measure=partial(_measure_cell, options),
        table=tables,
        mode="compiled" if options.compiled else "",
    )


def _plan(tiles: int, options: argparse.Namespace) -> Plan:
    return Plan(
        pairs=options.pairs or (60 if tiles == 5 else 20),
        again_every=options.again_every,
        profiled_tokens=options.profiled_tokens,
        extras=str(tiles) in options.extras.split(","),
    )


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
    plan = _plan(tiles, options)
    clock = clock_for(subject.model.device)
    caller = Caller(subject, batch, options.tokens, clock, static_cache=options.compiled)
    started_s = perf_counter()
    complete = run_cell(caller, cell, plan, box, file)
    taken = f"{len(cell['rows'])} pairs, {perf_counter() - started_s:.0f} s"
    print(f"{key}: {taken}, {'complete' if complete else 'to be continued'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
