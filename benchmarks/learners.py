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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kit.choices import FIXED, Judged, choose, choose_fixed, in_points, judge, score
from benchmarks.kit.options import plain_parser
from benchmarks.kit.recordings import RUN_DIR, Recording, read, record
from benchmarks.kit.results import write_result
from chronostat.config import Config, overridden
from chronostat.control.calibration import Calibration
from chronostat.control.learners import Learner, Outcome, learner_by_name
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import CpuClock
from chronostat.records import Budget
from chronostat.runs.store import RunStore

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "direct": ("train.learner=direct",),
    "rloo": ("train.learner=rloo",),
    "rloo, grpo advantages": ("train.learner=rloo", "rloo.advantage=grpo"),
}
MARGIN = "reward.margin=0.06"  # nothing but the training measurements holds a policy to its budgets here
BASELINE = "rloo"
CALIBRATION_SAMPLES = 12  # about what the calibration of a real run measures


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


def compare(run_dir: Path, seeds: int, executed_seconds: float) -> None:
    """Train, judge, print and write the result."""
    recordings, space, conditions = read(run_dir)
    validation = recordings["select"].complete()
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
        "model": RunStore.open(run_dir).metadata["model"],
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
    rivals = {name: policies[name][budget] for name in (FIXED, BASELINE)}
    rows: dict[str, Any] = {}
    print(f"\n{budget!s:<20} accuracy  latency/budget  kept  {'points over ' + FIXED:<26}points over {BASELINE}")
    for name, by_budget in policies.items():
        judged = by_budget[budget]
        row, gains = score(judged, rivals, budget, rng)
        rows[name] = {**row, "share_within": (judged.fractions <= budget.fraction).mean(axis=1).tolist()}
        points = {other: "" if other == name else in_points(gain) for other, gain in gains.items()}
        kept = row["kept"]
        print(
            f"{name:<22} {judged.quality.mean():6.3f}{judged.fractions.mean() / budget.fraction:14.3f}"
            f"{sum(kept):8}/{len(kept)}   {points[FIXED]:<26}{points[BASELINE]}"
        )
    return {"budget": str(budget), "policies": rows}


def main() -> None:
    """Record or compare."""
    parser = plain_parser(__doc__)
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
