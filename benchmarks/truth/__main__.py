"""Are the numbers right? Measured calls against bare ones, and stages against the profiler's kernels, at real sizes.

``python -m benchmarks.truth --device cuda --seconds 500`` measures cell by cell, most valuable first, and goes on
where it stopped. A cell is ``model:tiles`` of ``benchmarks/kit/models.py``. In each block a bare and a measured
``generate()`` run in random order, and in some of them a second bare one (A/A); all answers have the same number of
tokens, greedy. The ratios are medians of pairs with distribution-free 95 % intervals.

Beside the pairs, at the tiles that ``--extras`` names: where the time goes that is neither prefill nor decode; stages
against the kernels of ``torch.profiler`` in the same call, with idle gaps; what marks distort that wait for the device;
and whether marks on a wrong stream are caught. Raw values go to ``truth.json``.
"""

import argparse
import sys
from time import perf_counter

from benchmarks.kit.cells import Cell
from benchmarks.kit.pairs import add_pair_options, fill_pairs, open_pairs, warm_up
from benchmarks.kit.question import Question, Work
from benchmarks.truth.extras import fill_extras, has_extras
from benchmarks.truth.tables import tables

CELLS = ",".join(
    f"{model}:{tiles}" for tiles in (5, 1, 13) for model in ("qwen2.5-vl-7b", "internvl-moe-30b", "molmo2-8b")
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Of this benchmark."""
    add_pair_options(parser, "60 at 5 tiles, else 20")
    parser.add_argument("--profiled-tokens", type=int, default=16, help="tokens of profiled answers (default 16)")
    parser.add_argument("--extras", default="5", help="tiles at which the extra calls are made (default 5)")
    parser.add_argument("--compiled", action="store_true", help="static cache: compiled decode; cells of their own")


def measure(work: Work) -> None:
    """Pairs first, then the extra calls; all of it can go on later."""
    caller = work.caller(static_cache=work.options.compiled)
    cell = open_pairs(work, caller)
    started_s = perf_counter()
    call_s = warm_up(caller)
    complete = fill_pairs(work, caller, cell, _pairs(work.options, work.tiles))
    if _wants_extras(work.options, work.tiles):
        complete = fill_extras(work, caller, cell, call_s) and complete
    taken = f"{len(cell['rows'])} pairs, {perf_counter() - started_s:.0f} s"
    work.say(f"{taken}, {'complete' if complete else 'to be continued'}")


def is_complete(cell: Cell, options: argparse.Namespace, _: str, tiles: int) -> bool:
    """Whether no pair and no extra call is missing."""
    extras = not _wants_extras(options, tiles) or has_extras(cell, options.device)
    return extras and len(cell.get("rows", [])) >= _pairs(options, tiles)


def _pairs(options: argparse.Namespace, tiles: int) -> int:
    return options.pairs or (60 if tiles == 5 else 20)


def _wants_extras(options: argparse.Namespace, tiles: int) -> bool:
    return str(tiles) in options.extras.split(",")


TRUTH = Question(
    name="truth",
    text=__doc__,
    cells=CELLS,
    tokens=32,
    add_options=add_options,
    mode=lambda options: "compiled" if options.compiled else "",
    is_complete=is_complete,
    measure=measure,
    table=tables,
)

if __name__ == "__main__":
    sys.exit(TRUTH.main())
