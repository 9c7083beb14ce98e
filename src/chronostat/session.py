"""What every verb that executes needs, made from a configuration once: model, data, action space, clock, store."""

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from chronostat.config import Config
from chronostat.control.calibration import check_source
from chronostat.control.observation import Observer
from chronostat.data.demo import DemoTask
from chronostat.data.jsonl import JsonLines
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import Dataset, Sample, Split
from chronostat.errors import ConfigError, UnlikeConditions
from chronostat.knobs import find_space
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.conditions import read_conditions
from chronostat.models.load import Vlm, load_vlm
from chronostat.progress import Progress, Silent
from chronostat.records import Conditions, LatencyMetric, Phase, Source
from chronostat.store import RunStore
from chronostat.trials import TrialRunner
from chronostat.version import VERSION


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run works on, loaded and checked but not yet executed.

    Attributes:
        absent: for each knob that the model does not have, the reason.
    """

    config: Config
    vlm: Vlm
    dataset: Dataset
    space: ActionSpace
    absent: Mapping[str, str]

    @classmethod
    def load(cls, config: Config) -> "Material":
        """Load model and data.

        Raises:
            ConfigError: an unknown quality, or an own model without own data.
            ModelError: the model cannot be used.
            DataError: the data cannot be used.
            KnobError: the model lacks a knob or value that the configuration asks for.
        """
        quality_by_name(config.data.quality)
        dataset = _dataset(config)
        vlm = load_model(config)
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
    """Counts the calls of a model's own ``generate()``, apart from whatever is stored."""

    def __init__(self) -> None:
        self.calls = 0

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Generator[None]:
        """Count for the length of the ``with``."""
        watched: Any = model
        original = watched.generate

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever generate takes
            self.calls += 1
            return original(*args, **kwargs)

        watched.generate = counted
        try:
            yield
        finally:
            del watched.generate


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

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of one split in the order of the data set.

        Raises:
            DataError: there are none.
        """
        return self.material.dataset.split(split)

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
    material = Material.load(config)
    store = RunStore.create(run_dir, {**_first_facts(config, command), **material.facts()})
    with _session(material, store, progress or Silent()) as session:
        store.update_facts(metric=session.metric, source=session.source)
        yield session


@contextmanager
def reopen(store: RunStore, *, config: Config, progress: Progress | None = None) -> Generator[Session]:
    """Go on with a run that is stored already, under the conditions it began with.

    Raises:
        UnlikeConditions: another machine, model, source or setting of the machine.
        ConfigError, ModelError, DataError, KnobError, MeasurementError: as ``begin``.
    """
    facts = store.facts
    material = Material.load(config)
    if facts["model"]["fingerprint"] != material.vlm.fingerprint:
        raise UnlikeConditions(
            f"the run in {store.folder} belongs to model {facts['model']['fingerprint']}, but {material.vlm.name} is "
            f"{material.vlm.fingerprint}; begin a new run"
        )
    Conditions(**facts["conditions"]).require_like(read_conditions(material.vlm.model))
    with _session(material, store, progress or Silent()) as session:
        if session.source != facts["source"]:
            raise UnlikeConditions(f"the run's latencies are {facts['source']}, now {session.source}; begin a new run")
        yield session


@contextmanager
def _session(material: Material, store: RunStore, progress: Progress) -> Generator[Session]:
    config, model = material.config, material.vlm.model
    counter = CallCounter()
    runner = TrialRunner(
        model=model,
        processor=material.vlm.processor,
        quality=quality_by_name(config.data.quality),
        full=material.space.full,
        max_new_tokens=config.measure.max_new_tokens,
        clock=clock_for(model.device),
        seed=config.seed,
        keep=store.append,
        anchor_every_s=config.train.anchor_every_s,
    )
    with store, counter.watching(model):
        with _counted_phase(store, progress, counter, runner, "warmup", config.train.calibration_seconds):
            source = runner.source = _check_stages(runner, material)
            runner.run("warmup", 2, runner.request(material.dataset.split("train")[0]), material.space.settings)
        yield Session(
            material=material,
            store=store,
            progress=progress,
            counter=counter,
            runner=runner,
            observer=Observer(model, material.vlm.processor),
            conditions=read_conditions(model),
            metric=config.measure.latency_metric if source == "measured" else "total_ms",
            source=source,
        )


@contextmanager
def _counted_phase(
    store: RunStore, progress: Progress, counter: CallCounter, runner: TrialRunner, phase: Phase, seconds: float
) -> Generator[None]:
    """Record what a phase took, also when it is interrupted.

    Where an earlier process has stored executions of this phase, the calls of both cannot be known and none are said.
    """
    continued = bool(store.trials(phase))
    start_s, start_calls = runner.elapsed_s, counter.calls
    progress.begin(phase, seconds)
    try:
        yield
    finally:
        took_s, calls = runner.elapsed_s - start_s, counter.calls - start_calls
        facts = {"seconds": round(took_s, 1)} | ({} if continued else {"generate_calls": calls})
        store.update_facts(phases={**store.facts.get("phases", {}), phase: facts})
        progress.end(f"{calls:,} executions in {took_s:.0f} s")


def _check_stages(runner: TrialRunner, material: Material) -> Source:
    """Execute ``full`` twice, since the first call of a process pays for what later ones find ready."""
    request = runner.request(material.dataset.split("train")[0])
    runner.source = "total_only"  # accepts what comes; the answer decides what this run's source is
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


def _dataset(config: Config) -> Dataset:
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
