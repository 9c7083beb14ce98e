"""Which learner learns most from the same executed milliseconds? From real executions, recorded once and replayed.

::

    python -m benchmarks.learners --record --train-samples 400 --validation-samples 200
    python -m benchmarks.learners

The first command executes every setting once on every sample, in random order, and can be killed and repeated. The
second lets each learner train on these recordings: what it draws is looked up, and charged what it took, until
``--executed-seconds`` are spent. A learner that comes back to a sample sees the same measurements again, so record more
samples than a run visits. Latencies are fractions of the median of the 15 nearest measurements of ``full``, and exclude
the controller's own time, which is alike for all.

Every learner is judged on the validation samples, in two halves: its prices are settled, and the best fixed setting is
chosen, on one half, and both are judged on the other. Intervals are over seeds and samples, paired by both.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import crossed_interval, format_estimate, write_result
from chronostat.config import Config, load_config, overridden
from chronostat.control.calibration import Calibration
from chronostat.control.learners import Learner, Outcome, learner_by_name
from chronostat.control.observation import Observer
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import Split
from chronostat.errors import StoreError
from chronostat.execution import request_for
from chronostat.knobs.space import ActionSpace
from chronostat.material import Material
from chronostat.measure.clock import CpuClock
from chronostat.records import Budget, Conditions, LatencyMetric, Phase, Trial
from chronostat.session import Session, begin, reopen
from chronostat.store import RunStore
from chronostat.validation.policies import Pool, best_fixed

RUN_DIR = Path("runs/learners")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "direct": ("train.learner=direct",),
    "rloo": ("train.learner=rloo",),
    "rloo, grpo advantages": ("train.learner=rloo", "rloo.advantage=grpo"),
}
MARGIN = "reward.margin=0.06"  # nothing but the training measurements holds a policy to its budgets here
BASELINE = "rloo"
FIXED = "best fixed"
PHASES: Mapping[Phase, Split] = {"train": "train", "select": "validation"}
CALIBRATION_SAMPLES = 12  # about what the calibration of a real run measures
ANCHOR_WINDOW = 15

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Samples on which every setting was executed once; NaN where an execution failed.

    Attributes:
        observations: shape [N, D].
        quality: shape [N, S].
        fractions: latency as a fraction of ``full``, shape [N, S].
        executed_ms: of ``generate()``, shape [N, S].
    """

    observations: torch.Tensor
    quality: Floats
    fractions: Floats
    executed_ms: Floats

    def __len__(self) -> int:
        return len(self.quality)

    def rows(self, rows: Indices) -> "Recording":
        """Some of the samples."""
        return Recording(
            observations=self.observations[torch.from_numpy(rows)],
            quality=self.quality[rows],
            fractions=self.fractions[rows],
            executed_ms=self.executed_ms[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one policy did under one budget on every validation sample; shape [seeds, samples] each."""

    quality: Floats
    fractions: Floats

    def kept(self, budget: Budget) -> list[bool]:
        """For each seed whether the budget was kept by its own rule."""
        if budget.kind == "mean":
            return (self.fractions.mean(axis=1) <= budget.fraction).tolist()
        return ((self.fractions <= budget.fraction).mean(axis=1) >= 0.95).tolist()


def record(run_dir: Path, samples: Mapping[Phase, int]) -> None:
    """Execute every setting on the first samples of both splits, alternating between them; goes on where it was."""
    config = Config()
    is_new = not (run_dir / "run.json").is_file()
    opened = (
        begin(config, run_dir=run_dir, command=__name__) if is_new else reopen(RunStore.open(run_dir), config=config)
    )
    with opened as session:
        for number, (phase, index) in enumerate(_plan(session, samples), start=1):
            sample = session.samples(PHASES[phase])[index]
            trial = session.runner.run(phase, index, session.runner.request(sample), session.space.settings)
            failed = sum(execution.timing is None for execution in trial.executions)
            print(f"\r{number} samples recorded, {session.runner.elapsed_s:.0f} s, {failed} failed", end="", flush=True)
        session.store.compact()
    print()


def _plan(session: Session, samples: Mapping[Phase, int]) -> list[tuple[Phase, int]]:
    """What is not stored yet, both phases evenly over the whole time."""
    stored = {(trial.phase, trial.index) for phase in samples for trial in session.store.trials(phase)}
    wanted: list[tuple[float, Phase, int]] = [
        ((i + 0.5) / count, phase, i) for phase, count in samples.items() for i in range(count)
    ]
    return [(phase, i) for _, phase, i in sorted(wanted) if (phase, i) not in stored]


def read(run_dir: Path) -> tuple[dict[Phase, Recording], ActionSpace, Conditions]:
    """What was recorded, with what the controller would have seen.

    Raises:
        StoreError: nothing was recorded, or for another model.
    """
    store = RunStore.open(run_dir)
    material = Material.load(load_config(None))
    if store.facts["model"]["fingerprint"] != material.vlm.fingerprint:
        raise StoreError(f"{run_dir} was recorded with another model; delete it and record anew")
    trials = [trial for trial in store.trials() if trial.phase in PHASES]
    if {trial.phase for trial in trials} != set(PHASES):
        raise StoreError(f"{run_dir} holds too little; record with --record")
    metric = store.facts["metric"]
    full_ms = _local_full_ms([_column(trial, material.space, metric)[0] for trial in trials])
    observer = Observer(material.vlm.model, material.vlm.processor)
    recordings: dict[Phase, Recording] = {
        phase: _recording(phase, trials, full_ms, material, observer, metric) for phase in PHASES
    }
    return recordings, material.space, Conditions(**store.facts["conditions"])


def _recording(
    phase: Phase,
    trials: Sequence[Trial],
    full_ms: Floats,
    material: Material,
    observer: Observer,
    metric: LatencyMetric,
) -> Recording:
    space, samples = material.space, material.dataset.split(PHASES[phase])
    score = quality_by_name(material.config.data.quality)
    rows = [i for i, trial in enumerate(trials) if trial.phase == phase]
    mine = [trials[i] for i in rows]
    requests = (request_for(samples[trial.index], material.vlm.processor, score) for trial in mine)
    return Recording(
        observations=torch.stack([observer(request) for request in requests]),
        quality=np.array([_column(trial, space, "quality") for trial in mine]),
        fractions=np.array([_column(trial, space, metric) for trial in mine]) / full_ms[rows][:, None],
        executed_ms=np.array([_column(trial, space, "total_ms") for trial in mine]),
    )


def _column(trial: Trial, space: ActionSpace, name: LatencyMetric | Literal["quality"]) -> Floats:
    """One value per setting, shape [S]."""
    values = np.full(len(space), np.nan)
    for execution in trial.executions:
        if execution.timing is not None and execution.quality is not None:
            value = execution.quality if name == "quality" else execution.latency_ms(name)
            values[space.index(execution.setting)] = value
    return values


def _local_full_ms(full_ms: Sequence[float]) -> Floats:
    """Median of the nearest measurements of ``full`` in the order recorded, shape [trials]."""
    half = ANCHOR_WINDOW // 2
    return np.array([np.nanmedian(full_ms[max(0, i - half) : i + half + 1]) for i in range(len(full_ms))])


def teach(
    config: Config, space: ActionSpace, recording: Recording, seed: int, executed_ms: float
) -> tuple[Learner, dict[str, float]]:
    """A learner that has spent its milliseconds, and what that was worth."""
    rng, clock = np.random.default_rng(seed), CpuClock()
    order = rng.permutation(len(recording))
    calibration = Calibration(
        full_ms=1.0,
        fractions=tuple(np.nanmean(recording.fractions[order[:CALIBRATION_SAMPLES]], axis=0).tolist()),
        samples=CALIBRATION_SAMPLES,
    )
    budgets = calibration.budgets()
    size = recording.observations.shape[1]
    learner = learner_by_name(config.train.learner)(space, size, config, seed, calibration.fractions, budgets)
    spent_ms, trials, start_ns = 0.0, 0, clock.host_ns()
    while spent_ms < executed_ms:
        row = int(order[trials % len(order)])
        budget = budgets[int(rng.integers(len(budgets)))]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        draws = learner.propose(recording.observations[row], budget, config.train.group_size, generator)
        spent_ms += float(np.nansum(recording.executed_ms[row, np.unique(draws.numpy())]))
        _learn(learner, recording, row, draws, budget)
        trials += 1
    return learner, {"trials": trials, "learning_ms_per_trial": clock.host_ms_since(start_ns) / trials}


def _learn(learner: Learner, recording: Recording, row: int, draws: torch.Tensor, budget: Budget) -> None:
    measured = draws[torch.from_numpy(np.isfinite(recording.quality[row, draws.numpy()]))]
    if len(measured):
        learner.learn(
            Outcome(
                observation=recording.observations[row],
                settings=measured,
                quality=torch.tensor(recording.quality[row, measured.numpy()], dtype=torch.float32),
                latency=torch.tensor(recording.fractions[row, measured.numpy()], dtype=torch.float32),
                budget=budget,
            )
        )


def choose(learner: Learner, recording: Recording, budgets: Sequence[Budget]) -> dict[Budget, Indices]:
    """The frozen policy's settings on every sample; settled on the other half of the samples each time."""
    settings = {budget: np.zeros(len(recording), dtype=np.intp) for budget in budgets}
    for here, other in halves(len(recording)):
        learner.settle(recording.observations[torch.from_numpy(other)])
        for budget, chosen in settings.items():
            chosen[here] = [learner.decide(recording.observations[i], budget) for i in here.tolist()]
    return settings


def choose_fixed(recording: Recording, budgets: Sequence[Budget]) -> dict[Budget, Indices]:
    """The best fixed setting on every sample; chosen on the other half of the samples each time."""
    settings = {budget: np.zeros(len(recording), dtype=np.intp) for budget in budgets}
    candidates = range(recording.quality.shape[1])
    for here, other in halves(len(recording)):
        half = recording.rows(other)
        pool = Pool(quality=half.quality, latency_ms=half.fractions, rows=other)
        for budget, chosen in settings.items():
            found = best_fixed(pool, candidates, budget, budget.fraction)
            chosen[here] = int(half.fractions.mean(axis=0).argmin()) if found is None else found
    return settings


def halves(count: int) -> list[tuple[Indices, Indices]]:
    """Even and odd samples, each with the other half."""
    even, odd = np.arange(0, count, 2), np.arange(1, count, 2)
    return [(even, odd), (odd, even)]


def judge(recording: Recording, settings: Sequence[Mapping[Budget, Indices]], budget: Budget) -> Judged:
    """Look up what was chosen by each seed."""
    each = np.arange(len(recording))
    chosen = [by_budget[budget] for by_budget in settings]
    return Judged(
        quality=np.array([recording.quality[each, row] for row in chosen]),
        fractions=np.array([recording.fractions[each, row] for row in chosen]),
    )


def compare(run_dir: Path, seeds: int, executed_seconds: float) -> None:
    """Train, judge, print and write the result."""
    recordings, space, conditions = read(run_dir)
    complete = np.isfinite(recordings["select"].quality).all(axis=1)
    validation = recordings["select"].rows(np.flatnonzero(complete))
    budgets = Config().validation.budgets()
    chosen = {FIXED: [choose_fixed(validation, budgets)] * seeds}
    training: dict[str, list[dict[str, float]]] = {}
    for name, overrides in VARIANTS.items():
        config = overridden(Config(), (MARGIN, *overrides))
        chosen[name], training[name] = [], []
        for seed in range(seeds):
            learner, spent = teach(config, space, recordings["train"], seed, 1e3 * executed_seconds)
            chosen[name].append(choose(learner, validation, budgets))
            training[name].append(spent)
            print(
                f"{name}, seed {seed}: {spent['trials']} trials, {spent['learning_ms_per_trial']:.1f} ms to learn one"
            )
    policies = {
        name: {budget: judge(validation, by_seed, budget) for budget in budgets} for name, by_seed in chosen.items()
    }
    raw = {
        "model": RunStore.open(run_dir).facts["model"],
        "executed_seconds": executed_seconds,
        "samples": {phase: len(recording) for phase, recording in recordings.items()},
        "judged_samples": len(validation),
        "training": training,
        "budgets": [_compared(policies, budget) for budget in budgets],
    }
    print(f"wrote {write_result('learners', conditions, raw)}")


def _compared(policies: Mapping[str, Mapping[Budget, Judged]], budget: Budget) -> dict[str, Any]:
    """Print one budget's table; the same as plain data."""
    rng = np.random.default_rng(0)
    against = {name: policies[name][budget].quality for name in (FIXED, BASELINE)}
    rows: dict[str, Any] = {}
    print(f"\n{budget!s:<20} accuracy  latency/budget  kept  {'points over ' + FIXED:<26}points over {BASELINE}")
    for name, by_budget in policies.items():
        judged = by_budget[budget]
        gains = {other: crossed_interval(judged.quality - quality, rng) for other, quality in against.items()}
        kept = judged.kept(budget)
        rows[name] = {
            "accuracy": judged.quality.mean(axis=1).tolist(),
            "mean_fraction": judged.fractions.mean(axis=1).tolist(),
            "share_within": (judged.fractions <= budget.fraction).mean(axis=1).tolist(),
            "kept": kept,
            "gain_over": {other: [gain.point, gain.low, gain.high] for other, gain in gains.items()},
        }
        points = {
            other: "" if other == name else format_estimate(gain, digits=1, scale=100) for other, gain in gains.items()
        }
        print(
            f"{name:<22} {judged.quality.mean():6.3f}{judged.fractions.mean() / budget.fraction:14.3f}"
            f"{sum(kept):8}/{len(kept)}   {points[FIXED]:<26}{points[BASELINE]}"
        )
    return {"budget": str(budget), "policies": rows}


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="execute every setting on the samples, then end")
    parser.add_argument("--train-samples", type=int, default=400)
    parser.add_argument("--validation-samples", type=int, default=200)
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--executed-seconds", type=float, default=120.0, help="spent by each training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.record:
        record(arguments.run_dir, {"train": arguments.train_samples, "select": arguments.validation_samples})
    else:
        compare(arguments.run_dir, arguments.seeds, arguments.executed_seconds)


if __name__ == "__main__":
    main()
