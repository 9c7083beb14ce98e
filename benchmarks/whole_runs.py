"""What is a controller worth in real runs, over several seeds?

::

    python -m benchmarks.whole_runs run --seeds 5 --out runs/demos
    python -m benchmarks.whole_runs run --seeds 5 --out runs/sizes --set data.task=demo_sizes --at-once 5
    python -m benchmarks.whole_runs pool runs/demos --name whole_runs_demo

The first two commands train and judge a controller for each seed through the command line, ``--at-once`` so many of
them, each with a core of its own. The third pools what the runs stored: the gain of the controller over each rival,
paired by seed and sample, with intervals over both, its latency as a share of the budget, and how many kept it.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit.estimates import crossed_interval, format_estimate, markdown_table
from benchmarks.kit.options import plain_parser
from benchmarks.kit.results import write_result
from chronostat.control.controller_files import FOLDER, read_controller
from chronostat.errors import StoreError
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Conditions, PolicyScore, Setting
from chronostat.runs.store import RunStore, Validation
from chronostat.validation.policies import Measurements, Pool

RIVALS = ("best fixed", "static mix")


def run(folder: Path, seeds: int, at_once: int, arguments: Sequence[str]) -> None:
    """Train and judge, each seed in a process and on a core of its own; runs that are there are left alone."""
    cores = sorted(os.sched_getaffinity(0))[-at_once:]

    def one(seed: int) -> int:
        target = folder / f"seed{seed}"
        if (target / "validation.json").is_file():
            return 0
        core = cores[seed % len(cores)]
        command = [sys.executable, "-m", "chronostat", "demo", "--run-dir", str(target), "--seed", str(seed)]
        with (folder / f"seed{seed}.txt").open("w", encoding="utf-8") as log:
            return subprocess.run(
                [*command, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            ).returncode

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
    samples = min(verdict.samples for verdict in verdicts)
    budgets = dict.fromkeys(score.budget for score in verdicts[0].scores)
    tables = [_played(store, samples) for store in stores]
    rows = [
        ["budget", "accuracy", *(f"gain over {rival}" for rival in RIVALS), "of each seed", "latency / budget", "kept"]
    ]
    raw: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for budget in budgets:
        scores = [_scores(verdict, budget) for verdict in verdicts]
        ours = np.stack([table[str(budget)]["controller"] for table in tables])
        gains = {
            rival: crossed_interval(ours - np.stack([table[str(budget)][rival] for table in tables]), rng)
            for rival in RIVALS
            if rival in tables[0][str(budget)]
        }
        shares = [_share(each["controller"]) for each in scores]
        kept = [each["controller"].kept for each in scores]
        by_seed = [each["best fixed"].gain.point for each in scores if each["best fixed"].gain is not None]
        raw[str(budget)] = {
            "accuracy": [each["controller"].accuracy.point for each in scores],
            "gain_over": {rival: [gain.point, gain.low, gain.high] for rival, gain in gains.items()},
            "gain_over_best_fixed_by_seed": by_seed,
            "latency_over_budget": shares,
            "kept": {policy: [each[policy].kept for each in scores] for policy in scores[0]},
        }
        rows.append(
            [
                str(budget),
                f"{100 * ours.mean():.1f} %",
                *(format_estimate(gains[rival], digits=1, scale=100) if rival in gains else "" for rival in RIVALS),
                f"{100 * min(by_seed):+.1f} to {100 * max(by_seed):+.1f}",
                f"{min(shares):.2f} to {max(shares):.2f}",
                f"{sum(kept)} of {len(kept)}",
            ]
        )
    print(markdown_table(rows))
    metadata = stores[0].metadata
    detail = {
        "runs": len(stores),
        "judged_samples": [verdict.samples for verdict in verdicts],
        "config": metadata["config"],
        "phases": [store.metadata["phases"] for store in stores],
        "full_ms": [store.metadata["full_ms"] for store in stores],
        "budgets": raw,
    }
    print(f"wrote {write_result(name, Conditions.from_json(metadata['conditions']), detail)}")


def _scores(verdict: Validation, budget: Budget) -> dict[str, PolicyScore]:
    return {score.policy: score for score in verdict.scores if score.budget == budget}


def _share(score: PolicyScore) -> float:
    """Of the budget that a policy used: its mean latency, under a deadline its 95 % quantile."""
    return (score.mean_ms.point if score.budget.kind == "mean" else score.p95_ms) / score.budget_ms


def _played(store: RunStore, samples: int) -> dict[str, Mapping[str, np.ndarray]]:
    """By budget and policy the quality on each of the first judged samples."""
    verdict = Validation.from_json(store.read_json("validation.json"))
    controller = read_controller(store.folder / FOLDER)[0].controller
    space = ActionSpace(controller.levels, controller.pruned)
    trials = store.trials("test")
    table = Measurements(space=space, metric=store.metadata["metric"])
    for trial in trials:
        table.add(trial)
    chosen = {(str(d.budget), d.sample_id): space.index(d.setting) for d in store.decisions()}
    everything = table.at(np.arange(len(trials)))
    played: dict[str, Mapping[str, np.ndarray]] = {}
    for budget in dict.fromkeys(score.budget for score in verdict.scores):
        own = np.array([chosen[str(budget), trial.sample_id] for trial in trials])
        fixed = space.index(Setting.parse(verdict.selection[str(budget)].setting))
        policies = {"controller": everything.played(own).accuracy, "best fixed": everything.fixed(fixed).accuracy}
        policies |= _mix(everything, space, _scores(verdict, budget).get("static mix"))
        played[str(budget)] = {name: np.nan_to_num(quality[:samples]) for name, quality in policies.items()}
    return played


def _mix(everything: Pool, space: ActionSpace, score: PolicyScore | None) -> dict[str, np.ndarray]:
    if score is None:
        return {}
    return {
        "static mix": sum(
            (share * everything.fixed(space.index(Setting.parse(text))).accuracy for text, share in score.settings),
            start=np.zeros(len(everything)),
        )
    }


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
