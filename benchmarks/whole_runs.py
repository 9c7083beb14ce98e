"""What is a controller worth in real runs, over several seeds?

::

    python -m benchmarks.whole_runs run --seeds 5 --out runs/demos
    python -m benchmarks.whole_runs run --seeds 5 --out runs/sizes --set data.task=demo_sizes --at-once 5
    python -m benchmarks.whole_runs pool runs/demos --name whole_runs_demo

The first two commands train and judge a controller for each seed through the command line, ``--at-once`` so many of
them, each with a core of its own. The third pools the verdicts of the runs: the gain of the controller over each rival
with Student's 95 % interval over seeds, its latency as a share of the budget, and how many kept it.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from benchmarks.kit.estimates import format_estimate, markdown_table
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import write_result
from chronostat.compare.statistics import mean_interval
from chronostat.errors import StoreError
from chronostat.records import Budget, Conditions, PolicyScore
from chronostat.runs.store import RunStore, Validation

RIVALS = ("best fixed", "static mix")
HEAD = ["budget", "accuracy", *(f"gain over {rival}" for rival in RIVALS), "of each seed", "latency / budget", "kept"]


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """What several runs found under one budget, a value for each run.

    Attributes:
        accuracy: of the controller.
        latency_over_budget: of the controller: its mean, under a deadline its 95 % quantile.
        gains: by rival, the controller's accuracy less that of the rival on the same samples.
        kept: by policy, whether the budget was kept.
    """

    budget: str
    accuracy: tuple[float, ...]
    latency_over_budget: tuple[float, ...]
    gains: Mapping[str, tuple[float, ...]]
    kept: Mapping[str, tuple[bool, ...]]


def run(folder: Path, seeds: int, at_once: int, arguments: Sequence[str]) -> None:
    """Train and judge, each seed in a process and on a core of its own; runs that are there are left alone."""
    idle: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[-at_once:]:
        idle.put(core)

    def one(seed: int) -> int:
        target = folder / f"seed{seed}"
        if (target / "validation.json").is_file():
            return 0
        core = idle.get()
        command = [sys.executable, "-m", "chronostat", "demo", "--run-dir", str(target), "--seed", str(seed)]
        try:
            with (folder / f"seed{seed}.txt").open("w", encoding="utf-8") as log:
                return subprocess.run(
                    [*command, *arguments],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    check=False,
                    preexec_fn=lambda: os.sched_setaffinity(0, {core}),
                ).returncode
        finally:
            idle.put(core)

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(at_once) as pool:
        for seed, code in enumerate(pool.map(one, range(seeds))):
            print(f"seed {seed}: {'done' if code == 0 else f'exit code {code}, see {folder}/seed{seed}.txt'}")


def pool(folder: Path, name: str) -> None:
    """Print the pooled table and write the raw values."""
    stores = [RunStore.open(path) for path in sorted(folder.glob("seed*/")) if (path / "validation.json").is_file()]
    if not stores:
        raise StoreError(f"{folder} holds no judged run; make some with: python -m benchmarks.whole_runs run")
    verdicts = [Validation.from_json(store.read_json("validation.json")) for store in stores]
    budgets = [pooled(budget, verdicts) for budget in dict.fromkeys(score.budget for score in verdicts[0].scores)]
    print(markdown_table([HEAD, *map(_row, budgets)]))
    metadata, judged = stores[0].metadata, [verdict.samples for verdict in verdicts]
    detail = {
        "runs": len(stores),
        "judged_samples": judged,
        "config": metadata["config"],
        "phases": [store.metadata["phases"] for store in stores],
        "full_ms": [store.metadata["full_ms"] for store in stores],
        "budgets": [asdict(each) for each in budgets],
    }
    print(f"{sum(judged):,} judged samples of {len(stores)} runs")
    print(f"wrote {write_result(name, Conditions.from_json(metadata['conditions']), detail)}")


def pooled(budget: Budget, verdicts: Sequence[Validation]) -> Pooled:
    """What several runs found under one budget."""
    scores = [{score.policy: score for score in verdict.scores if score.budget == budget} for verdict in verdicts]
    own = [each["controller"] for each in scores]
    return Pooled(
        budget=str(budget),
        accuracy=tuple(score.accuracy.point for score in own),
        latency_over_budget=tuple(map(_share, own)),
        gains={
            rival: tuple(_gain(each[rival]) for each in scores)
            for rival in RIVALS
            if all(rival in each for each in scores)
        },
        kept={policy: tuple(each[policy].kept for each in scores) for policy in scores[0]},
    )


def _gain(score: PolicyScore) -> float:
    assert score.gain is not None, f"the controller's gain over {score.policy} is judged"
    return score.gain.point


def _row(each: Pooled) -> list[str]:
    kept, gains, shares = each.kept["controller"], each.gains["best fixed"], each.latency_over_budget
    return [
        each.budget,
        f"{100 * np.mean(each.accuracy):.1f} %",
        *(_over_seeds(each.gains[rival]) if rival in each.gains else "" for rival in RIVALS),
        f"{100 * min(gains):+.1f} to {100 * max(gains):+.1f}",
        f"{min(shares):.2f} to {max(shares):.2f}",
        f"{sum(kept)} of {len(kept)}",
    ]


def _over_seeds(gains: Sequence[float]) -> str:
    return format_estimate(mean_interval(np.array(gains)), digits=1, scale=100)


def _share(score: PolicyScore) -> float:
    """Of the budget that a policy used: its mean latency, under a deadline its 95 % quantile."""
    return (score.mean_ms.point if score.budget.kind == "mean" else score.p95_ms) / score.budget_ms


def main() -> None:
    """Run or pool."""
    parser = plain_parser(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="train and judge")
    running.add_argument("--out", type=Path, required=True, help="folder of the runs")
    running.add_argument("--seeds", type=int, default=5)
    running.add_argument("--at-once", type=int, default=1, help="so many at a time, each on a core of its own")
    running.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    pooling = verbs.add_parser("pool", help="print what they say together")
    pooling.add_argument("folder", type=Path)
    pooling.add_argument("--name", required=True, help="of the result file")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        overrides = [part for each in arguments.overrides for part in ("--set", each)]
        run(arguments.out, arguments.seeds, arguments.at_once, overrides)
    else:
        pool(arguments.folder, arguments.name)


if __name__ == "__main__":
    main()
