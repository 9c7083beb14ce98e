"""What every verb that executes needs, made from a configuration once: model, data, action space, clock, store."""

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from chronostat.config import Config
from chronostat.control.calibration import check_source
from chronostat.control.observation import Observer
from chronostat.data.demo import DemoTask
from chronostat.data.jsonl import JsonLines
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import Dataset, Split
from chronostat.errors import ConfigError, UnlikeConditions
from chronostat.knobs import find_space
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.conditions import read_conditions
from chronostat.models.load import Vlm, fingerprint, load_vlm
from chronostat.progress import Progress, Silent
from chronostat.records import Conditions, LatencyMetric, Phase, Source, Trial
from chronostat.store import RunStore
from chronostat.trials import Subject, TrialRunner
from chronostat.version import VERSION

_LEAST_PHASE_S = 10.0  # even where the box of the whole run has ended


class Subjects(Protocol):
    """What is executed, in three disjoint splits: a ``Dataset``, or ready batches."""

    def split(self, name: Split) -> Sequence[Subject]:
        """The subjects of one split, in an order that never changes."""
        ...


@dataclass(frozen=True, kw_only=True)
class BareModel:
    """A model that is given ready batches, so that it needs no processor."""

    model: PreTrainedModel
    name: str
    processor: None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of configuration and weights; a controller is bound to it."""
        return fingerprint(self.model)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run works on, loaded and checked but not yet executed.

    Attributes:
        absent: for each knob that the model does not have, the reason.
    """

    config: Config
    vlm: Vlm | BareModel
    dataset: Subjects
    space: ActionSpace
    absent: Mapping[str, str]

    @classmethod
    def load(cls, config: Config) -> "Material":
        """Load model and data.

        Raises:
            ConfigError: an unknown quality, or an own model without own data.
            ModelError: the model cannot be used.
            DataError: the data cannot be used, or has nothing to train or to settle on.
            KnobError: the model lacks a knob or value that the configuration asks for.
        """
        dataset = load_data(config)
        return cls.of(config, load_model(config), dataset)

    @classmethod
    def of(cls, config: Config, vlm: Vlm | BareModel, dataset: Subjects) -> "Material":
        """The same for a model and data that are there already, ready batches among them.

        Raises:
            DataError: the data has nothing to train or to settle on.
            KnobError: the model lacks a knob or value that the configuration asks for.
        """
        for split in ("train", "validation"):
            dataset.split(split)  # nobody should learn after minutes of training that this is missing
        space, absent = find_space(vlm.model, vlm.processor, config.knobs.model_dump())
        return cls(config=config, vlm=vlm, dataset=dataset, space=space, absent=absent)

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {
            "model": {
                "name": self.vlm.name,
                "fingerprint": self.vlm.fingerprint,
                "parameters": sum(weight.numel() for weight in self.vlm.model.parameters()),
            },
            "space": self.space.to_json(),
            "absent": dict(self.absent),
            "conditions": asdict(read_conditions(self.vlm.model)),
        }


class CallCounter:
    """Counts the calls of a model's own ``generate()``, apart from whatever is stored.

    Attributes:
        calls: all of them.
        unfinished: those since the last trial that was stored; more than 0 only where a trial was interrupted.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.unfinished = 0

    def trial_stored(self) -> None:
        """The calls so far belong to stored trials."""
        self.unfinished = 0

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Generator[None]:
        """Count for the length of the ``with``."""
        watched: Any = model
        original, own = watched.generate, vars(watched).get("generate")

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever generate takes
            self.calls += 1
            self.unfinished += 1
            return original(*args, **kwargs)

        watched.generate = counted
        try:
            yield
        finally:
            del watched.generate
            if own is not None:  # someone had put it there, for example a compiled one
                watched.generate = own


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process at work on one run.

    Attributes:
        runner: executes trials; each is stored as it ends.
        conditions: under which it measures.
        metric: the latency that counts; ``total_ms`` where the stages could not be seen.
        source: where this run's latencies come from.
    """

    material: Material
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
        return self.material.config

    @property
    def space(self) -> ActionSpace:
        """The run's action space."""
        return self.material.space

    @property
    def clock(self) -> Clock:
        """The clock of the model's device."""
        return self.runner.clock

    def samples(self, split: Split) -> Sequence[Subject]:
        """What one split holds, in the order of the data set.

        Raises:
            DataError: there are none.
        """
        return self.material.dataset.split(split)

    def box_s(self, seconds: float) -> float:
        """Time box of a phase that may take ``seconds``, if the box of the whole run leaves them."""
        whole_s = self.config.seconds
        return seconds if whole_s is None else min(seconds, max(whole_s - self.runner.elapsed_s, _LEAST_PHASE_S))

    def phase(self, phase: Phase, seconds: float) -> AbstractContextManager[None]:
        """Everything executed inside belongs to ``phase``; its time and its ``generate()`` calls are recorded."""
        return _counted_phase(self.store, self.progress, self.counter, self.runner, phase, seconds)


@contextmanager
def begin(config: Config, *, run_dir: Path, command: str, progress: Progress | None = None) -> Generator[Session]:
    """A new run: load everything, create its store, and check that the stages of this model can be seen.

    Raises:
        ConfigError, ModelError, DataError, KnobError: see ``Material.load``; no store is created then.
        StoreError: the run directory cannot be used.
        MeasurementError: the check failed; with ``on_unmeasured = "stop"`` also if stages are not seen.
    """
    with begin_with(Material.load(config), run_dir=run_dir, command=command, progress=progress) as session:
        yield session


@contextmanager
def begin_with(
    material: Material,
    *,
    run_dir: Path,
    command: str,
    progress: Progress | None = None,
    clock: Clock | None = None,
    **facts: object,
) -> Generator[Session]:
    """The same with what is loaded already.

    Args:
        material: model, data and action space.
        run_dir: where the run is stored.
        command: how it was begun, for people.
        progress: told how far it is.
        clock: the device's own if absent.
        facts: further keys of ``run.json``, plain data.

    Raises:
        StoreError, MeasurementError: as ``begin``.
    """
    store = RunStore.create(run_dir, {**_first_facts(material.config, command), **material.facts(), **facts})
    with _session(material, store, progress or Silent(), clock) as session:
        yield session


@contextmanager
def reopen(store: RunStore, *, config: Config, progress: Progress | None = None) -> Generator[Session]:
    """Go on with a run that is stored already, under the conditions it began with.

    Raises:
        UnlikeConditions: another machine, model, source or setting of the machine.
        ConfigError, ModelError, DataError, KnobError, MeasurementError: as ``begin``.
    """
    with reopen_with(Material.load(config), store, progress=progress) as session:
        yield session


@contextmanager
def reopen_with(
    material: Material, store: RunStore, *, progress: Progress | None = None, clock: Clock | None = None
) -> Generator[Session]:
    """The same with what is loaded already.

    Raises:
        UnlikeConditions, MeasurementError: as ``reopen``.
    """
    require_like(material, store)
    with _session(material, store, progress or Silent(), clock) as session:
        yield session


def require_like(material: Material, store: RunStore) -> None:
    """Accept a stored run of the same model and conditions.

    Raises:
        UnlikeConditions: names what differs.
    """
    facts = store.facts
    if facts["model"]["fingerprint"] != material.vlm.fingerprint:
        raise UnlikeConditions(
            f"the run in {store.folder} belongs to model {facts['model']['fingerprint']}, but {material.vlm.name} is "
            f"{material.vlm.fingerprint}; begin a new run"
        )
    Conditions(**facts["conditions"]).require_like(read_conditions(material.vlm.model))


@contextmanager
def _session(material: Material, store: RunStore, progress: Progress, clock: Clock | None) -> Generator[Session]:
    config, model = material.config, material.vlm.model
    counter = CallCounter()

    def keep(trial: Trial) -> None:
        store.append(trial)
        counter.trial_stored()

    runner = TrialRunner(
        model=model,
        processor=material.vlm.processor,
        quality=quality_by_name(config.data.quality),
        full=material.space.full,
        max_new_tokens=config.measure.max_new_tokens,
        clock=clock or clock_for(model.device),
        seed=config.seed,
        keep=keep,
        anchor_every_s=config.train.anchor_every_s,
    )
    with store, counter.watching(model):
        with _counted_phase(store, progress, counter, runner, "warmup", config.train.calibration_seconds):
            source = runner.source = _check_stages(runner, material)
            runner.run("warmup", 2, runner.request(material.dataset.split("train")[0]), material.space.settings)
        metric = config.measure.latency_metric if source == "measured" else "total_ms"
        _record_source(store, source, metric)
        yield Session(
            material=material,
            store=store,
            progress=progress,
            counter=counter,
            runner=runner,
            observer=Observer(model, material.vlm.processor),
            conditions=read_conditions(model),
            metric=metric,
            source=source,
        )


def _record_source(store: RunStore, source: Source, metric: LatencyMetric) -> None:
    """A run has one source: that of the first process that got far enough to see it."""
    recorded = store.facts.get("source")
    if recorded is None:
        store.update_facts(metric=metric, source=source)
    elif recorded != source:
        raise UnlikeConditions(f"the run's latencies are {recorded}, now {source}; begin a new run")


@contextmanager
def _counted_phase(
    store: RunStore, progress: Progress, counter: CallCounter, runner: TrialRunner, phase: Phase, seconds: float
) -> Generator[None]:
    """Record what a phase took, also when it is interrupted; the processes of one run are added up.

    A process that was killed told nobody how many calls it made, so a phase that it was in gets no count any more.
    """
    earlier = store.facts.get("phases", {}).get(phase)
    if earlier is None:
        earlier = {} if store.trials(phase) else {"generate_calls": 0}
    else:  # until this process has ended nobody knows its calls
        _record_phase(store, phase, {key: value for key, value in earlier.items() if key != "generate_calls"})
    start_s, start_calls = runner.elapsed_s, counter.calls
    progress.begin(phase, seconds)
    try:
        yield
    finally:
        took_s, calls = runner.elapsed_s - start_s, counter.calls - start_calls
        progress.end(f"{calls:,} executions in {took_s:.0f} s")
        took = {"seconds": took_s, "generate_calls": calls - counter.unfinished}
        if counter.unfinished or "unfinished_calls" in earlier:
            took["unfinished_calls"] = counter.unfinished  # of trials that were interrupted, so that none was stored
        sums = {key: round(earlier.get(key, 0) + value, 1) for key, value in took.items()}
        if "generate_calls" not in earlier:
            del sums["generate_calls"]
        _record_phase(store, phase, sums)


def _record_phase(store: RunStore, phase: Phase, facts: Mapping[str, float]) -> None:
    store.update_facts(phases={**store.facts.get("phases", {}), phase: facts})


def _check_stages(runner: TrialRunner, material: Material) -> Source:
    """Execute ``full`` twice, since the first call of a process pays for what later ones find ready."""
    request = runner.request(material.dataset.split("train")[0])
    runner.source = None  # whatever comes decides
    trials = [runner.run("warmup", index, request, [runner.full]) for index in range(2)]
    return check_source(trials[-1].executions[0], material.config.measure.on_unmeasured)


def load_model(config: Config) -> Vlm:
    """The model of a configuration, with torch set up for measuring.

    Raises:
        ModelError: it cannot be used.
    """
    vlm = load_vlm(
        config.model.path,
        device=config.model.device,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        layout=config.model.layout,
    )
    if vlm.model.device.type == "cpu":
        torch.set_num_threads(config.measure.threads)
    return vlm


def load_data(config: Config) -> Dataset:
    """The samples of a configuration.

    Raises:
        ConfigError: an unknown quality, or an own model without own data.
        DataError: the data cannot be used.
    """
    quality_by_name(config.data.quality)
    if config.data.path is None and config.model.path is not None:
        raise ConfigError(
            f"model.path = {config.model.path!r} without data.path: the bundled task is made for the bundled model; "
            "name your own samples with data.path (docs/data.md)"
        )
    return DemoTask() if config.data.path is None else JsonLines(Path(config.data.path))


def _first_facts(config: Config, command: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
    }
