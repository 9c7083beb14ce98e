"""What a run works on, loaded and checked before anything is executed: model, data and action space."""

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from chronostat.config import Config, DataConfig
from chronostat.data.checking import check_references
from chronostat.data.identity import digests
from chronostat.data.own import OwnData
from chronostat.data.quality import quality_by_name
from chronostat.data.samples import SPLITS, Dataset, Split
from chronostat.data.tasks import TASKS, default_quality, task_by_name
from chronostat.engine.choosing import running_by
from chronostat.errors import ConfigError
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import BatchRequest, execute, explaining_errors, request_for
from chronostat.execution.trials import TrialInput
from chronostat.knobs.registry import find_space
from chronostat.knobs.space import ActionSpace
from chronostat.machine.stabilise import stabilised
from chronostat.measure.decoding import Decoding, decoding_of
from chronostat.models.identity import fingerprint
from chronostat.models.load import Vlm, load_vlm, speaks_like_the_bundled
from chronostat.records import Conditions
from chronostat.runs.beginning import check_prompts
from chronostat.runs.store import RunStore


class TrialInputs(Protocol):
    """What is executed, in three disjoint splits: a ``Dataset``, or ready batches."""

    def split(self, name: Split) -> Sequence[TrialInput]:
        """Those of one split, in an order that never changes."""
        ...


@dataclass(frozen=True, kw_only=True)
class BareModel:
    """A model that is given ready batches, so that it needs no processor."""

    model: PreTrainedModel
    name: str
    processor: None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Who it is (``models/identity.py``); a controller is bound to it."""
        return fingerprint(self.model)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run works on, loaded and checked but not yet executed.

    Attributes:
        absent: for each knob that the model does not have, the reason.
    """

    config: Config
    vlm: Vlm | BareModel
    dataset: TrialInputs
    space: ActionSpace
    absent: Mapping[str, str]

    @classmethod
    def load(cls, config: Config) -> "Workload":
        """Load model and data.

        Raises:
            ConfigError: an unknown quality or task, a task beside own data, or an own model without own data.
            StoreError: ``measure.estimate_from`` holds no run.
            ModelError: the model cannot be used.
            DataError: the data cannot be used, or has nothing to train, to settle or to judge on.
            KnobError: the model lacks a knob or value that the configuration asks for.
        """
        if config.measure.estimate_from is not None:
            RunStore.open(config.measure.estimate_from)  # read only if the stages are not seen; a typo is said now
        dataset, vlm = load_both(config)
        return cls.of(config, vlm, dataset)

    @classmethod
    def of(cls, config: Config, vlm: Vlm | BareModel, dataset: TrialInputs) -> "Workload":
        """The same for a model and data that are there already, ready batches among them.

        Raises:
            DataError: the data has nothing to train, to settle or to judge on.
            KnobError: the model lacks a knob or value that the configuration asks for.
            ConfigError: it shall sample, and its generation_config does not.
        """
        decoding_of(vlm.model, sample=config.measure.sample)
        for split in SPLITS:
            dataset.split(split)  # nobody should learn after minutes of training that this is missing
        space, absent = find_space(vlm.model, vlm.processor, config.knobs.model_dump())
        return cls(config=config, vlm=vlm, dataset=dataset, space=space, absent=absent)

    @property
    def decoding(self) -> Decoding:
        """How the model chooses tokens in this run."""
        return decoding_of(self.vlm.model, sample=self.config.measure.sample)

    def conditions(self) -> Conditions:
        """Under which a run of this process would measure now."""
        return read_conditions(self.vlm.model, sample=self.config.measure.sample)

    def metadata(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {
            "model": {
                "name": self.vlm.name,
                "fingerprint": self.vlm.fingerprint,
                "parameters": sum(weight.numel() for weight in self.vlm.model.parameters()),
            },
            "data": {**_places(self.config.data), "digests": digests(self.dataset)},
            "space": self.space.to_json(),
            "absent": dict(self.absent),
            "pruned": dict(self.space.pruned),
            "conditions": asdict(self.conditions()),
        }

    @contextmanager
    def stabilised(self) -> Generator[str | None]:
        """Inside, the process is as the configuration wants it for measuring, its engine too; afterwards as before.

        Yields:
            Why the model runs eagerly although ``model.engine = "auto"`` on CUDA; None: it runs as it was asked to.

        Raises:
            ModelError: ``model.engine = "graph"``, and it cannot.
            MeasurementError: the execution that tries the engine failed.
        """
        measure = self.config.measure
        threads = measure.threads if self.vlm.model.device.type == "cpu" else None
        wanted, vlm = self.config.model, self.vlm
        engine = running_by(
            wanted.engine, vlm.model, vlm.name, most_graphs=wanted.most_graphs, try_full=self._execute_full
        )
        with stabilised(threads=threads, flush_denormals=measure.flush_denormals), engine as eager_because:
            yield eager_because

    def _execute_full(self) -> None:
        trial_input = self.dataset.split("train")[0]
        with explaining_errors("the execution that tries the engine"):
            if isinstance(trial_input, BatchRequest):
                request = trial_input
            else:
                assert self.vlm.processor is not None, "samples need a processor"
                request = request_for(trial_input, self.vlm.processor, None)
            execute(self.vlm.model, request, setting=self.space.full, max_new_tokens=2)


def _places(data: DataConfig) -> dict[str, Any]:
    """Where files of one's own are, also for a process in another directory."""
    return {
        "path": None if data.path is None else str(Path(data.path).expanduser().absolute()),
        "files": [str(Path(file).expanduser().absolute()) for file in data.files],
    }


def load_both(config: Config) -> tuple[Dataset, Vlm]:
    """Data and model of a configuration, and whether they go together.

    Raises:
        ConfigError: an unknown quality, or an own model without own data.
        ModelError: the model cannot be used.
        DataError: the data cannot be used, the processor refuses a prompt, or no reference can ever be matched.
    """
    dataset = load_data(config)
    check_references(dataset, quality_of(config))
    vlm = load_model(config)
    check_prompts(dataset, vlm)
    return dataset, vlm


def load_model(config: Config) -> Vlm:
    """The model of a configuration, with torch set up for measuring.

    Raises:
        ModelError: it cannot be used.
    """
    vlm = load_vlm(
        config.model.path,
        device=config.model.device,
        dtype=config.model.dtype,
        attention=config.model.attention,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        layout=config.model.layout,
        template=config.model.template,
    )
    if vlm.model.device.type == "cpu":
        torch.set_num_threads(config.measure.threads)
    return vlm


def load_data(config: Config) -> Dataset:
    """The samples of a configuration.

    Raises:
        ConfigError: an unknown quality or task, a task beside own data, or an own model without own data.
        DataError: the data cannot be used.
    """
    quality_by_name(quality_of(config))
    data = config.data
    if data.path is not None:
        if data.task != DataConfig().task or data.files:
            raise ConfigError(f"data.path = {data.path!r} beside data.task or data.files; name one source of samples")
        return OwnData(Path(data.path).expanduser(), data.columns, data.shuffle)
    if data.columns:
        raise ConfigError("data.columns names columns of data.path, which is absent; name a file with data.path")
    if config.model.path is not None and data.task in TASKS:
        _require_the_bundled_dialect(config.model.path)
    return task_by_name(data.task, data.files, data.shuffle)


def quality_of(config: Config) -> str:
    """How answers are scored, by name.

    Raises:
        ConfigError: an unknown task of lmms-eval.
    """
    return config.data.quality or default_quality(config.data.task)


def _require_the_bundled_dialect(path: str) -> None:
    """Accept a model that reads and writes as the bundled one does, as one that was widened or tuned from it.

    Raises:
        ConfigError: its tokenizer or chat template is another one, or it is no directory.
    """
    if not speaks_like_the_bundled(path):
        raise ConfigError(
            f"model.path = {path!r} without data.path: the bundled task is made for the bundled model; name your own "
            "samples with data.path (docs/data.md), or a model directory with its tokenizer and chat template"
        )
