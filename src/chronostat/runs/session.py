"""One process at work on one run: its workload, its store, and the runner that executes for it."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from chronostat.config import Config
from chronostat.control.calibration import check_source
from chronostat.control.drift import DriftTracker, reference_of
from chronostat.control.failures import IN_A_ROW
from chronostat.control.observer import Observer
from chronostat.data.identity import require_same
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import Split
from chronostat.errors import ChronostatError, UnlikeConditions
from chronostat.evidence.observation import Observation
from chronostat.execution.conditions import as_it_was
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.decoding import own_decoding
from chronostat.measure.flow import parts_followed
from chronostat.models.identity import unlike
from chronostat.models.weights import weights_checksum
from chronostat.progress import Progress, Silent
from chronostat.records import Conditions, LatencyMetric, Phase, Setting, Source, Trial
from chronostat.runs.estimator import Estimator, estimator_from
from chronostat.runs.knob_check import metadata_of, prove_knobs
from chronostat.runs.phases import CallCounter, counted_phase
from chronostat.runs.store import RunStore
from chronostat.runs.store.comparable import CONDITIONS
from chronostat.runs.workload import Workload, quality_of
from chronostat.version import VERSION

_MOST_PROBES = 4  # executions before training at which the stages can be seen
_TIME_LIMIT = 30.0  # of the time that full took, unless the configuration names a limit
_LEAST_TIME_LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process at work on one run.

    Attributes:
        runner: executes trials; each is stored as it ends.
        conditions: under which it measures.
        metric: the latency that counts; ``total_ms`` where the stages could not be seen.
        source: where this run's latencies come from.
    """

    workload: Workload
    store: RunStore
    progress: Progress
    counter: CallCounter
    runner: TrialRunner
    observer: Observer
    conditions: Conditions
    metric: LatencyMetric
    source: Source

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.workload.config

    @property
    def space(self) -> ActionSpace:
        """The run's action space."""
        return self.workload.space

    @property
    def clock(self) -> Clock:
        """The clock of the model's device."""
        return self.runner.clock

    def samples(self, split: Split) -> Sequence[TrialInput]:
        """What one split holds, in the order of the data set.

        Raises:
            DataError: there are none.
        """
        return self.workload.dataset.split(split)

    def observe(self, trial_input: TrialInput) -> Observation:
        """What the controller sees of it; nothing is executed."""
        return self.observer.seen(trial_input)

    def unseen_inputs(self) -> list[TrialInput]:
        """Samples to train and to select on, evenly from both, that are looked at; few of them are executed."""
        most = self.config.train.unseen
        train, validation = (self.samples(split) for split in ("train", "validation"))
        mixed = [each for pair in zip_longest(train[:most], validation[:most]) for each in pair if each is not None]
        return mixed[:most]

    def unseen(self) -> list[Observation]:
        """What the controller sees of them."""
        return [self.observe(trial_input) for trial_input in self.unseen_inputs()]

    def time_left_s(self) -> float:
        """Of the box of the whole run; infinite where it has none."""
        whole_s = self.config.seconds
        return inf if whole_s is None else whole_s - self.runner.elapsed_s

    def follow_drift(self, full_ms: float) -> None:
        """From now on every trial records how ``full`` has drifted; what the run holds already is taken into account.

        Args:
            full_ms: latency of ``full`` in the calibration.
        """
        reference = reference_of(self.store.trials("calibrate"), self.metric, full_ms)
        tracker = DriftTracker(reference, self.metric)
        for trial in self.store.trials():
            if trial.phase != "warmup":
                tracker.add(trial)
        self.runner.drift = tracker

    def take_out(self, setting: Setting, reason: str) -> None:
        """Say everywhere that a setting has left the action space; in ``run.json`` once."""
        known: dict[str, str] = self.store.metadata.get("taken_out", {})
        if str(setting) not in known:
            self.store.update_metadata(taken_out={**known, str(setting): reason})
        self.progress.warn(
            f"setting {setting} failed {IN_A_ROW} times in a row and is used no more: {reason}; leave its value out of "
            "the knobs section, or free what it needs"
        )

    def phase(self, phase: Phase, length: str) -> AbstractContextManager[None]:
        """Everything executed inside belongs to ``phase``; its time and its ``generate()`` calls are recorded.

        Args:
            phase: that begins.
            length: what it takes at most, in words.

        Raises:
            UnlikeConditions: threads, clocks or whatever else counts are not what they were when the session began.
        """
        self.conditions.require_comparable(self.workload.conditions())
        return counted_phase(self.store, self.progress, self.counter, self.runner, phase, length)


def executions(count: int) -> str:
    """How long a phase is, in words."""
    return f"about {count:,} executions"


@contextmanager
def begin(config: Config, *, run_dir: Path, command: str, progress: Progress | None = None) -> Generator[Session]:
    """A new run: load everything, create its store, and check that the stages of this model can be seen.

    Raises:
        ConfigError, ModelError, DataError, KnobError: see ``Workload.load``; no store is created then.
        StoreError: the run directory cannot be used.
        MeasurementError: the check failed; with ``on_unmeasured = "stop"`` also if stages are not seen.
    """
    with begin_with(Workload.load(config), run_dir=run_dir, command=command, progress=progress) as session:
        yield session


@contextmanager
def begin_with(
    workload: Workload,
    *,
    run_dir: Path,
    command: str,
    progress: Progress | None = None,
    clock: Clock | None = None,
    **metadata: object,
) -> Generator[Session]:
    """The same with what is loaded already.

    Args:
        workload: model, data and action space.
        run_dir: where the run is stored.
        command: how it was begun, for people.
        progress: told how far it is.
        clock: the device's own if absent.
        metadata: further keys of ``run.json``, plain data.

    Raises:
        StoreError, MeasurementError: as ``begin``.
    """
    progress = progress or Silent()
    with workload.stabilised() as eager_because:
        _say_engine(progress, eager_because)
        store = RunStore.create(
            run_dir, {**_first_metadata(workload.config, command), **workload.metadata(), **metadata}
        )
        with _session(workload, store, progress, clock) as session:
            yield session


@contextmanager
def reopen(store: RunStore, *, config: Config, progress: Progress | None = None) -> Generator[Session]:
    """Go on with a run that is stored already, under the conditions it began with.

    Raises:
        UnlikeConditions: another machine, model, source or setting of the machine.
        ConfigError, ModelError, DataError, KnobError, MeasurementError: as ``begin``.
    """
    with reopen_with(Workload.load(config), store, progress=progress) as session:
        yield session


@contextmanager
def reopen_with(
    workload: Workload, store: RunStore, *, progress: Progress | None = None, clock: Clock | None = None
) -> Generator[Session]:
    """The same with what is loaded already.

    Raises:
        UnlikeConditions, MeasurementError: as ``reopen``.
    """
    progress = progress or Silent()
    with workload.stabilised() as eager_because:
        _say_engine(progress, eager_because)
        require_comparable(workload, store)
        with _session(workload, store, progress, clock) as session:
            yield session


def _say_engine(progress: Progress, eager_because: str | None) -> None:
    if eager_because is not None:
        progress.warn(f"the model runs eagerly, not by the engine 'graph': {eager_because}")


def require_comparable(workload: Workload, store: RunStore) -> None:
    """Accept a stored run of the same model, data and conditions; for a caller inside ``workload.stabilised()``.

    Raises:
        UnlikeConditions: names what differs.
        DataError: the samples of a split are others.
    """
    metadata = store.metadata
    differing = unlike(metadata["model"]["fingerprint"], workload.vlm.model)
    if differing is not None:
        raise UnlikeConditions(
            f"the run in {store.folder} belongs to model {metadata['model']['fingerprint']}, but {workload.vlm.name} "
            f"is {workload.vlm.fingerprint}: {differing} differ; begin a new run"
        )
    require_same(metadata.get("data", {}).get("digests", {}), workload.dataset, str(store.folder))
    stored = as_it_was(Conditions.from_json(metadata.get("conditions", {})), workload.vlm.model)
    stored.require_comparable(workload.conditions())


@contextmanager
def _session(workload: Workload, store: RunStore, progress: Progress, clock: Clock | None) -> Generator[Session]:
    config, model = workload.config, workload.vlm.model
    counter, conditions = CallCounter(), workload.conditions()

    def keep(trial: Trial) -> None:
        store.append(trial)
        counter.trial_stored()

    runner = TrialRunner(
        model=model,
        processor=workload.vlm.processor,
        quality=quality_by_name(quality_of(config)),
        full=workload.space.full,
        max_new_tokens=config.measure.max_new_tokens,
        clock=clock or clock_for(model.device),
        seed=config.seed,
        keep=keep,
        anchor_every_s=config.train.anchor_every_s,
        conditions=conditions.fingerprint,
        sample=config.measure.sample,
    )
    with store, counter.watching(model):
        _keep_conditions(store, conditions, model)
        if workload.decoding.note is not None:
            progress.warn(workload.decoding.note)
        with counted_phase(store, progress, counter, runner, "warmup", executions(len(workload.space))):
            weights = weights_checksum(model)
            recorded: Source | None = store.metadata.get("source")
            source = decide_source(runner, workload, recorded)
            _prove_knobs(runner, workload, store, weights)
        metric = config.measure.latency_metric if source != "total_only" else "total_ms"
        if recorded is None:
            store.update_metadata(metric=metric, source=source)
        yield Session(
            workload=workload,
            store=store,
            progress=progress,
            counter=counter,
            runner=runner,
            observer=Observer(model, workload.vlm.processor, workload.space),
            conditions=conditions,
            metric=metric,
            source=source,
        )


def _keep_conditions(store: RunStore, conditions: Conditions, model: PreTrainedModel) -> None:
    """Add those of this process to the run's; those of an older version say from now on how they decoded."""
    metadata, own = store.metadata, own_decoding(model)
    began, *earlier = (
        {**each, "decoding": each.get("decoding", own)}
        for each in (metadata["conditions"], *metadata.get(CONDITIONS, {}).values())
    )
    known = dict(zip(metadata.get(CONDITIONS, {}), earlier, strict=True))
    store.update_metadata(**{"conditions": began, CONDITIONS: {**known, conditions.fingerprint: asdict(conditions)}})


def _prove_knobs(runner: TrialRunner, workload: Workload, store: RunStore, weights: Mapping[str, int]) -> None:
    """Warm every setting up, and count meanwhile that each knob acts; ``run.json`` says what was counted."""
    try:
        samples = workload.dataset.split("train")
        proofs = prove_knobs(runner, workload.space, samples, index=_MOST_PROBES, weights=weights)
    except ChronostatError as error:
        record_check(store, failed=str(error))
        raise
    record_check(store, failed=None, knobs=metadata_of(proofs))


def record_check(store: RunStore, **metadata: object) -> None:
    """Say in ``run.json`` what the knobs' self-check has found so far; ``failed`` is the reason why it stopped."""
    store.update_metadata(selfcheck={**store.metadata.get("selfcheck", {}), **metadata})


def decide_source(runner: TrialRunner, workload: Workload, recorded: Source | None) -> Source:
    """Execute ``full`` twice, since the first call of a process pays for what later ones find ready.

    The first one is followed, to find the parts by what flows through them.

    Where the stages of the second are not to be trusted, twice more at most: one doubtful call shall not decide how a
    whole run is measured. All are stored once the source is known, and without latencies if this ends the process: no
    record of a run has another source.

    Args:
        runner: executes; knows the source afterwards.
        workload: model, data and action space.
        recorded: that of the first process that got far enough to see it; None: there was none.

    Raises:
        UnlikeConditions: the source is another one than ``recorded``.
    """
    request = runner.request(workload.dataset.split("train")[0])
    runner.source = None  # whatever comes decides
    runner.time_limit_s = workload.config.measure.time_limit_s
    keep, held = runner.keep, list[Trial]()
    runner.keep = held.append
    try:
        with parts_followed(runner.model):
            runner.run("warmup", 0, request, [runner.full])
        while len(held) < 2 or (len(held) < _MOST_PROBES and not _is_measured(held[-1])):
            runner.run("warmup", len(held), request, [runner.full])
        probe = held[-1].executions[0]
        if runner.time_limit_s is None and probe.timing is not None:
            runner.time_limit_s = max(_TIME_LIMIT * probe.timing.total_ms / 1e3, _LEAST_TIME_LIMIT_S)
        source = check_source(probe, workload.config.measure.on_unmeasured)
        if recorded not in {None, source}:
            raise UnlikeConditions(f"the run's latencies are {recorded}, now {source}; begin a new run")
        if source == "estimated":
            runner.estimate = _estimator(workload).timing
        runner.source = source
    finally:
        runner.keep = keep
        for trial in held:
            keep(runner.in_source(trial, request))
    return source


def _is_measured(trial: Trial) -> bool:
    timing = trial.executions[0].timing
    return timing is not None and timing.source == "measured"


def _estimator(workload: Workload) -> Estimator:
    config = workload.config.measure
    assert config.estimate_from is not None, "the configuration pairs it with 'estimate'"
    run, like = Path(config.estimate_from), workload.conditions()
    return estimator_from(run, model=workload.vlm.model, conditions=like)


def _first_metadata(config: Config, command: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
    }
