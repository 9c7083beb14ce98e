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
Runs that are in the file already, written by the same commit, are not replayed again; the others are added to it.

``vowpalwabbit`` (``pip install 'chronostat[rivals]'``) learns from the executions that ``direct`` chose.
"""

import os
from argparse import Namespace
from collections.abc import Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import RESULTS, commit, read_compressed, write_compressed
from benchmarks.learners.cases import LEARNERS, Case, Row, begin, rows_in_process
from benchmarks.learners.report import columns_of, print_report
from benchmarks.learners.table import stored_table
from benchmarks.learners.world import NOISES

SIZES = (0, 84, 250, 600, 1_000, 4_000)


def main() -> None:
    """Replay what is not there yet, print and write, or print what was written."""
    arguments = _arguments()
    if not arguments.show:
        known = _known(arguments.out)
        rows = [*known, *_replayed(arguments, {_key(row) for row in known})]
        write_compressed(arguments.out, "learners", columns_of(rows))
        print(f"wrote {arguments.out}")
    print_report(read_compressed(arguments.out)["raw"])


def _known(path: Path) -> list[Row]:
    """Rows that this very code has written."""
    if not path.is_file() or (found := read_compressed(path))["commit"] != commit():
        return []
    columns = found["raw"]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _key(row: Row) -> tuple[int, int, str, str]:
    return row["world"], row["seed"], row["noise"], row["policy"]


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


def _replayed(arguments: Namespace, known: Container[tuple[int, int, str, str]]) -> Iterator[Row]:
    cases = [
        Case(
            world=world,
            seed=seed,
            noise=noise,
            learner=learner,
            sizes=arguments.sizes,
            library=learner == "direct",
            overrides=tuple(arguments.set),
        )
        for world in range(arguments.worlds)
        for seed in range(arguments.seeds)
        for noise in arguments.noise
        for learner in arguments.learners
        if (world, seed, noise, learner) not in known
    ]
    spawn = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, spawn, begin, (stored_table(),)) as pool:
        for done, rows in enumerate(pool.map(rows_in_process, cases), start=1):
            print(f"\r{done} of {len(cases)} runs", end="", flush=True)
            yield from rows
    print()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(map(int, text.split(","))))


if __name__ == "__main__":
    main()
