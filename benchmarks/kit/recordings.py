"""Every setting executed once on many samples, recorded: what the choices of any policy are scored on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from chronostat.config import Config, load_config
from chronostat.control.observation import Observer
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import Sample, Split
from chronostat.errors import StoreError
from chronostat.execution.execute import request_for
from chronostat.knobs.space import ActionSpace
from chronostat.models.identity import unlike
from chronostat.records import Conditions, LatencyMetric, Phase, Trial
from chronostat.runs.session import Session, begin, reopen
from chronostat.runs.store import RunStore
from chronostat.runs.workload import Workload, quality_of

RUN_DIR = Path("runs/learners")
PHASES: Mapping[Phase, Split] = {"train": "train", "select": "validation"}
ANCHOR_WINDOW = 15  # measurements of full that the denominator of a fraction is the median of

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

    def complete(self) -> "Recording":
        """The samples on which no execution failed."""
        return self.rows(np.flatnonzero(np.isfinite(self.quality).all(axis=1)))


def record(run_dir: Path, samples: Mapping[Phase, int]) -> None:
    """Execute every setting on the first samples of both splits, alternating between them; goes on where it was."""
    config = Config()
    is_new = not (run_dir / "run.json").is_file()
    command = "python -m benchmarks.learners --record"
    opened = (
        begin(config, run_dir=run_dir, command=command) if is_new else reopen(RunStore.open(run_dir), config=config)
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


def read(
    run_dir: Path, phases: Sequence[Phase] = ("train", "select")
) -> tuple[dict[Phase, Recording], ActionSpace, Conditions]:
    """What was recorded, with what the controller would have seen.

    Args:
        run_dir: of ``record``.
        phases: that are wanted.

    Raises:
        StoreError: nothing was recorded, or for another model.
    """
    store = RunStore.open(run_dir)
    workload = Workload.load(load_config(None))
    if unlike(store.metadata["model"]["fingerprint"], workload.vlm.model) is not None:
        raise StoreError(f"{run_dir} was recorded with another model; delete it and record anew")
    trials = [trial for trial in store.trials() if trial.phase in PHASES]
    if not {trial.phase for trial in trials} >= set(phases):
        raise StoreError(f"{run_dir} holds too little; record with --record")
    metric = store.metadata["metric"]
    full_ms = _local_full_ms([_column(trial, workload.space, metric)[0] for trial in trials])
    observer = Observer(workload.vlm.model, workload.vlm.processor)
    recordings: dict[Phase, Recording] = {
        phase: _recording(phase, trials, full_ms, workload, observer, metric) for phase in phases
    }
    return recordings, workload.space, Conditions.from_json(store.metadata["conditions"])


def _recording(
    phase: Phase,
    trials: Sequence[Trial],
    full_ms: Floats,
    workload: Workload,
    observer: Observer,
    metric: LatencyMetric,
) -> Recording:
    space, samples = workload.space, cast("Sequence[Sample]", workload.dataset.split(PHASES[phase]))
    processor = workload.vlm.processor
    assert processor is not None, "the bundled model has one"
    score = quality_by_name(quality_of(workload.config))
    rows = [i for i, trial in enumerate(trials) if trial.phase == phase]
    mine = [trials[i] for i in rows]
    requests = (request_for(samples[trial.index], processor, score) for trial in mine)
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
