"""What a run will cost, from one measured sample for each setting and size of image."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from chronostat.data.samples import Sample
from chronostat.execution.execute import request_for
from chronostat.models.load import Vlm
from chronostat.records import Execution, Trial
from chronostat.runs.store import RunStore
from chronostat.runs.workload import Workload
from chronostat.studies.survey import Arm, Plan, Shot, repeated

_LOOKED_AT = 64  # training samples whose sizes are looked at
_SIZES = 4  # classes of sizes; more are put together


@dataclass(frozen=True, kw_only=True)
class Size:
    """Images of about one size.

    Attributes:
        width: of the measured sample's first image, in pixels.
        height: likewise.
        share: of the samples that were looked at.
        request_ms: mean over the settings of what a caller waited.
    """

    width: int
    height: int
    share: float
    request_ms: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured.

    Attributes:
        sizes: from small to large.
        part_bytes: of a stored trial, beside its executions.
        execution_bytes: of each of its executions.
        eager_because: why the model ran eagerly although ``model.engine = "auto"`` on CUDA; None: as it was asked to.
    """

    sizes: Sequence[Size]
    part_bytes: float
    execution_bytes: float
    eager_because: str | None = None

    @property
    def execution_s(self) -> float:
        """Of one execution, over all settings and sizes as often as they occur."""
        return sum(size.share * size.request_ms for size in self.sizes) / 1e3

    def stored_bytes(self, executions: float, *, per_trial: float) -> float:
        """What so many executions take on the disk, before a run that has ended merges its parts."""
        return executions / per_trial * self.part_bytes + executions * self.execution_bytes


def probe(workload: Workload, samples: Sequence[Sample], vlm: Vlm) -> Probe:
    """Execute one sample of each class of sizes under every setting, as a run would, and store it aside.

    Args:
        workload: whose settings are executed.
        samples: of the training split, in the order that the run takes them.
        vlm: the model.

    Raises:
        DataError: an image cannot be read.
        MeasurementError: an execution failed.
    """
    classes = size_classes([(sample, _size(sample)) for sample in samples[:_LOOKED_AT]])
    requests = [request_for(sample, vlm.processor, None) for sample, _ in classes]
    arms = [Arm(name=str(s), vlm=vlm, setting=s, requests=requests) for s in workload.space.settings]
    config = workload.config
    plan = Plan(repeats=1, max_new_tokens=config.measure.max_new_tokens, seed=config.seed, sample=config.measure.sample)
    with workload.stabilised() as eager_because:
        shots = repeated(arms, plan)
    part_bytes, execution_bytes = _stored([shot.execution for shot in shots if shot.request == 0])
    return Probe(
        sizes=tuple(_size_of(sample, share, number, shots) for number, (sample, share) in enumerate(classes)),
        part_bytes=part_bytes,
        execution_bytes=execution_bytes,
        eager_because=eager_because,
    )


def size_classes(sized: Sequence[tuple[Sample, tuple[int, int]]]) -> list[tuple[Sample, float]]:
    """A sample for each size, or for each quarter of them by pixels where there are more, with its share.

    Args:
        sized: samples with width and height of their first image.
    """
    ordered = sorted(sized, key=lambda each: prod(each[1]))
    different = sorted({size for _, size in ordered}, key=prod)
    if len(different) <= _SIZES:
        groups = [[sample for sample, size in ordered if size == wanted] for wanted in different]
    else:
        bounds = np.linspace(0, len(ordered), _SIZES + 1).round().astype(int).tolist()
        groups = [[sample for sample, _ in ordered[a:b]] for a, b in pairwise(bounds)]
    return [(group[len(group) // 2], len(group) / len(ordered)) for group in groups if group]


def _size(sample: Sample) -> tuple[int, int]:
    """Width and height of its first image in pixels."""
    height, width = sample.shapes()[0]
    return width, height


def _size_of(sample: Sample, share: float, request: int, shots: Sequence[Shot]) -> Size:
    width, height = _size(sample)
    took_ms = [shot.request_ms for shot in shots if shot.request == request]
    return Size(width=width, height=height, share=share, request_ms=sum(took_ms) / len(took_ms))


def _stored(executions: Sequence[Execution]) -> tuple[float, float]:
    """Bytes of a trial without executions, and of each execution: from a part with one and a part with all."""
    few, many = _part_bytes(executions[:1]), _part_bytes(executions)
    each = (many - few) / max(len(executions) - 1, 1)
    return few - each, each


def _part_bytes(executions: Sequence[Execution]) -> int:
    trial = Trial(phase="train", index=0, sample_id=executions[0].sample_id, executions=tuple(executions))
    with tempfile.TemporaryDirectory() as folder, RunStore.create(folder, {}) as store:
        store.append(trial)
        return sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
