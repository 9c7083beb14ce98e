"""What should a controller learn from: single shots, drift-corrected single shots, or repeats?

::

    python -m benchmarks.learners --record --train-samples 1 --validation-samples 180
    python -m benchmarks.learning --seconds-each 60 --seeds 5

The first command records every setting once on samples of the validation split (``runs/learners``); the second trains
controllers with real executions, the same seconds inside ``generate()`` for each of them, and scores their choices on
that one table. Each controller is a run of its own under ``--work``, with its own calibration of the same length, as in
any training; one that was killed goes on where it was, one that is finished is not trained again. The protocols of one
seed run one after the other, in random order.

A controller is held to the mean budgets as ``chronostat validate`` does it: by latencies measured on other samples,
here those of the other half of the table. So all protocols are compared at equal latency. Beside it, "as trained": what
its budgets come to if nothing but its own training measurements holds it to them. Intervals are over seeds and samples,
paired by both.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kit.choices import FIXED, Judged, choose, choose_fixed, in_points, judge, score
from benchmarks.kit.estimates import markdown_table
from benchmarks.kit.options import plain_parser
from benchmarks.kit.recordings import RUN_DIR, Recording, read
from benchmarks.kit.results import commit, write_result
from chronostat.config import Config, load_config
from chronostat.control.controller import load_controller
from chronostat.control.controller_files import FOLDER, METADATA
from chronostat.data.demo import DemoTask
from chronostat.errors import ConfigError
from chronostat.models.load import Vlm
from chronostat.records import Budget, Conditions
from chronostat.runs.session import Session, begin_with, reopen_with
from chronostat.runs.store import RunStore
from chronostat.runs.training import train
from chronostat.runs.workload import Workload, load_model

WORK_DIR = Path("runs/learning")
PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "single shots": ("train.latency=raw",),
    "drift-corrected": ("train.latency=drift_corrected",),
    "median of 3": ("train.latency=raw", "train.repeats=3"),
    "median of 3, drift-corrected": ("train.latency=drift_corrected", "train.repeats=3"),
}
DEFAULT = ("single shots", "drift-corrected", "median of 3")
BASELINE = "single shots"
BUDGETS = tuple(Budget(kind="mean", fraction=fraction) for fraction in (0.3, 0.4, 0.5))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training.

    Attributes:
        protocol: a name of ``PROTOCOLS``.
        seconds: spent inside executions.
    """

    protocol: str
    seed: int
    seconds: float
    calibration_seconds: float

    def folder(self, work: Path) -> Path:
        """Where its run is."""
        return work / f"{self.protocol.replace(' ', '-').replace(',', '')}-{self.seed}"

    def config(self) -> Config:
        """A training as ``chronostat train`` does it, but for its end."""
        ends = (
            f"seed={self.seed}",
            f"train.executed_seconds={self.seconds}",
            f"train.seconds={100 * self.seconds}",
            f"train.calibration_seconds={self.calibration_seconds}",
        )
        return load_config(None, [*ends, *PROTOCOLS[self.protocol]])


def cells(protocols: Sequence[str], seeds: int, seconds: float, calibration_seconds: float) -> list[Cell]:
    """All trainings, seed by seed, the protocols of each in random order."""
    orders = [np.random.default_rng(seed).permutation(len(protocols)) for seed in range(seeds)]
    return [
        Cell(protocol=protocols[int(i)], seed=seed, seconds=seconds, calibration_seconds=calibration_seconds)
        for seed, order in enumerate(orders)
        for i in order.tolist()
    ]


def run(cell: Cell, work: Path, vlm: Vlm, dataset: DemoTask) -> RunStore:
    """The finished run of a cell: trained now, continued, or found.

    Raises:
        ConfigError: the folder holds a run that was trained otherwise.
    """
    folder, config = cell.folder(work), cell.config()
    known = RunStore.open(folder) if (folder / "run.json").is_file() else None
    if known is not None and Config.model_validate(known.metadata["config"]) != config:
        raise ConfigError(f"{folder} was trained with other arguments; delete it, or name another folder with --work")
    if known is None or not known.holds(f"{FOLDER}/{METADATA}"):
        workload = Workload.of(config, vlm, dataset)
        with _session(workload, folder, known) as session:
            train(session)
            session.store.compact()
    return RunStore.open(folder)


def _session(workload: Workload, folder: Path, known: RunStore | None) -> AbstractContextManager[Session]:
    if known is not None:
        return reopen_with(workload, known)
    return begin_with(workload, run_dir=folder, command="python -m benchmarks.learning", commit=commit())


def metadata_of(store: RunStore) -> dict[str, Any]:
    """What a training was: how much it executed, and what the machine did meanwhile."""
    (row,) = store.query(
        "SELECT count(*), count(DISTINCT record), sum(total_ms), count(disturbed), count(invalid), min(drift), "
        "max(drift) FROM executions WHERE phase = 'train'"
    ).fetchall()
    names = ("executions", "trials", "executed_ms", "disturbed", "failed", "least_drift", "most_drift")
    calibration = store.metadata["calibration"]
    kept = {"commit": store.metadata["commit"], "full_ms": calibration["full_ms"], "calibrated": calibration["samples"]}
    return dict(zip(names, row, strict=True)) | kept


def choices(store: RunStore, vlm: Vlm, table: Recording, *, renew: bool) -> dict[Budget, np.ndarray]:
    """What a trained controller chooses for every sample of the table; see ``choose``."""
    controller = load_controller(store.folder / FOLDER, vlm.model, vlm.processor)
    return choose(controller.learner, table, BUDGETS, renew=renew)


def compare(arguments: argparse.Namespace) -> None:
    """Train, score, print and write the result."""
    recordings, space, conditions = read(arguments.table, ("select",))
    table = recordings["select"].complete()
    vlm, dataset = load_model(load_config(None)), DemoTask()
    chosen: dict[str, dict[str, list[Mapping[Budget, np.ndarray]]]] = {"renewed": {}, "as trained": {}}
    trainings: dict[str, list[dict[str, Any]]] = {}
    for cell in cells(arguments.protocols, arguments.seeds, arguments.seconds_each, arguments.calibration_seconds):
        store = run(cell, arguments.work, vlm, dataset)
        conditions.require_comparable(Conditions.from_json(store.metadata["conditions"]))
        trained = {"seed": cell.seed, **metadata_of(store)}
        trainings.setdefault(cell.protocol, []).append(trained)
        print(f"{cell.protocol}, seed {cell.seed}: {trained['trials']} trials, {trained['executions']} executions")
        for how, by_protocol in chosen.items():
            by_protocol.setdefault(cell.protocol, []).append(choices(store, vlm, table, renew=how == "renewed"))
    fixed = [choose_fixed(table, BUDGETS)] * arguments.seeds
    raw = {
        "seconds_each": arguments.seconds_each,
        "calibration_seconds": arguments.calibration_seconds,
        "seeds": arguments.seeds,
        "judged_samples": len(table),
        "settings": [str(setting) for setting in space.settings],
        "trainings": trainings,
        **{how: compared(by_protocol | {FIXED: fixed}, table) for how, by_protocol in chosen.items()},
    }
    print(f"\n{_markdown(raw)}\nwrote {write_result(arguments.result, conditions, raw)}")


def compared(chosen: Mapping[str, Sequence[Mapping[Budget, np.ndarray]]], table: Recording) -> list[dict[str, Any]]:
    """Accuracy, latency and gains of every protocol under every budget, as plain data.

    Args:
        chosen: for each protocol, and ``best fixed``, the choices of each seed.
        table: what they are scored on.
    """
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        judged = {name: judge(table, by_seed, budget) for name, by_seed in chosen.items()}
        for name in judged:
            row = _row(name, judged, budget) | {"budget": str(budget), "protocol": name}
            rows.append(row | {"choices": [by_seed[budget].tolist() for by_seed in chosen[name]]})
    return rows


def _row(name: str, judged: Mapping[str, Judged], budget: Budget) -> dict[str, Any]:
    rivals = {rival: judged[rival] for rival in (FIXED, BASELINE) if rival in judged}
    row, gains = score(judged[name], rivals, budget, np.random.default_rng(0))
    return {**row, "shown": {rival: in_points(gain) for rival, gain in gains.items()}}


def _markdown(raw: Mapping[str, Any]) -> str:
    """The table for the documents."""
    head = ["budget", "learned from", "accuracy", "latency / budget", "as trained", "gain over best fixed"]
    rows = [[*head, f"gain over {BASELINE}"]]
    for mine, trained in zip(raw["renewed"], raw["as trained"], strict=True):
        limit = float(mine["budget"].split()[-1])
        latency = [f"{np.mean(row['mean_fraction']) / limit:.2f}" for row in (mine, trained)]
        gains = [mine["shown"].get(name, "") if name != mine["protocol"] else "" for name in (FIXED, BASELINE)]
        accuracy = f"{100 * np.mean(mine['accuracy']):.1f} %"
        rows.append([mine["budget"], mine["protocol"], accuracy, *latency, *gains])
    return markdown_table(rows)


def main() -> None:
    """Train what is missing, then compare."""
    parser = plain_parser(__doc__)
    parser.add_argument("--seconds-each", type=float, default=60.0, help="inside executions, of each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calibration-seconds", type=float, default=15.0, help="of each training")
    parser.add_argument("--protocols", nargs="+", choices=list(PROTOCOLS), default=list(DEFAULT))
    parser.add_argument("--table", type=Path, default=RUN_DIR, help="run of benchmarks.learners --record")
    parser.add_argument("--work", type=Path, default=WORK_DIR, help="where the trainings are kept")
    parser.add_argument("--result", default="learning", help="name of the file under benchmarks/results")
    torch.set_num_threads(1)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
