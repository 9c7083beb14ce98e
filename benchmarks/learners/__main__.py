"""Which learner learns most from the same executions, and are its budgets kept? Stored answers, replayed.

::

    python -m benchmarks.learners                     # 40 worlds, 5 seeds: a day on one core
    python -m benchmarks.learners --worlds 6 --seeds 1 --sizes 84,1000 --learners direct
    python -m benchmarks.learners --show

No model runs. Which of 1,000 scenes x 14 kinds of question the bundled model answers right under each of 36 settings
was measured once (``recipes/demo_vlm/results``), and so was what each setting costs; requests are drawn as the task's
shares say, and latencies scatter by one of four kinds of noise. All else is the product's own code: calibration,
selection, training, the frozen policy and its rivals. Half of the scenes are learned from, the verdict is about the
other half, and it is the truth: no chance is left in it. A world is a division of the scenes; a seed draws all else.
Runs that are in the file already at all sizes, written by the same commit, are not replayed again; the others are
added to it.

``vowpalwabbit`` (``pip install 'chronostat[rivals]'``) learns from the executions that ``direct`` chose.
"""

import os
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import RESULTS, commit, read_compressed, write_compressed
from benchmarks.learners.cases import LEARNERS, LIBRARY, Case, Row, begin, rows_in_process
from benchmarks.learners.report import columns_of, print_report
from benchmarks.learners.table import stored_table
from benchmarks.learners.world import NOISES
from chronostat.errors import ConfigError

SIZES = (0, 84, 250, 600, 1_000, 4_000)
_WRITTEN_EACH = 16  # runs

Run = tuple[int, int, str, str]  # world, seed, noise, learner


def main() -> None:
    """Replay what is not there yet, print and write, or print what was written."""
    arguments = _arguments()
    if not arguments.show:
        _replay(arguments)
        print(f"wrote {arguments.out}")
    print_report(read_compressed(arguments.out)["raw"]["rows"])


def _replay(arguments: Namespace) -> None:
    """Add the runs that the file lacks, and write it again and again, so that what was replayed is not lost."""
    rows = _known(arguments.out, arguments.set)
    cases = list(_missing(arguments, rows))
    replayed = {(case.world, case.seed, case.noise, case.learner) for case in cases}
    rows = [row for row in rows if _run_of(row) not in replayed]
    for done, new in enumerate(_replayed(cases, arguments.processes), start=1):
        rows += new
        print(f"\r{done} of {len(cases)} runs", end="", flush=True)
        if done % _WRITTEN_EACH == 0 or done == len(cases):
            write_compressed(arguments.out, "learners", {"set": arguments.set, "rows": columns_of(rows)})
    print()


def _known(path: Path, overrides: Sequence[str]) -> list[Row]:
    """Rows that this very code has written under the same configuration."""
    if not path.is_file() or (found := read_compressed(path))["commit"] != commit():
        return []
    if found["raw"]["set"] != list(overrides):
        raise ConfigError(f"{path} was replayed with --set {found['raw']['set']}; take another file: --out")
    columns = found["raw"]["rows"]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _run_of(row: Row) -> Run:
    learner = "direct" if row["policy"] == LIBRARY else row["policy"]
    return row["world"], row["seed"], row["noise"], learner


def _missing(arguments: Namespace, rows: Sequence[Row]) -> Iterator[Case]:
    """Runs that the rows lack, or lack at some size; those are replayed at all of their sizes."""
    known: defaultdict[Run, set[int]] = defaultdict(set)
    for row in rows:
        known[_run_of(row)].add(row["size"])
    worlds, seeds = range(arguments.worlds), range(arguments.seeds)
    noises: Sequence[str] = arguments.noise
    learners: Sequence[str] = arguments.learners
    wanted: Iterator[Run] = product(worlds, seeds, noises, learners)
    for world, seed, noise, learner in wanted:
        sizes = known[world, seed, noise, learner]
        if not sizes.issuperset(arguments.sizes):
            yield Case(
                world=world,
                seed=seed,
                noise=noise,
                learner=learner,
                sizes=tuple(sorted(sizes.union(arguments.sizes))),
                library=learner == "direct",
                overrides=tuple(arguments.set),
            )


def _arguments() -> Namespace:
    parser = plain_parser(__doc__)
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5, help="runs in each world")
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="training executions, as 84,1000")
    parser.add_argument("--noise", type=_words, default=tuple(NOISES), help=f"of {','.join(NOISES)}")
    parser.add_argument("--learners", type=_words, default=LEARNERS, help=f"of {','.join(LEARNERS)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the configuration")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS / "learners.json.gz", help="file of the result")
    parser.add_argument("--show", action="store_true", help="print what was written; replay nothing")
    return parser.parse_args()


def _replayed(cases: Sequence[Case], processes: int) -> Iterator[list[Row]]:
    with ProcessPoolExecutor(processes, get_context("spawn"), begin, (stored_table(),)) as pool:
        yield from pool.map(rows_in_process, cases)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(map(int, text.split(","))))


if __name__ == "__main__":
    main()
