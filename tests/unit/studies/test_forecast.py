"""What a run will cost: sizes of images, their shares, and what is stored."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch
from PIL import Image

from chronostat.config import load_config
from chronostat.runs.plan import planned_executions
from chronostat.runs.workload import Workload
from chronostat.studies import forecast
from chronostat.studies.forecast import Probe, Size, probe, size_classes
from chronostat.studies.survey import repeated
from e2e.commands import FEW_SETTINGS


def test_each_size_is_a_class_with_its_share(demo_sample):
    samples = [replace(demo_sample, id=str(n)) for n in range(4)]
    sized = list(zip(samples, [(8, 8), (4, 4), (8, 8), (16, 2)], strict=True))
    found = [(sample.id, share) for sample, share in size_classes(sized)]
    assert found == [("1", 0.25), ("3", 0.25), ("2", 0.5)]  # 16, 32 and 64 pixels


def test_many_sizes_are_put_together_by_quarters(demo_sample):
    sized = [(replace(demo_sample, id=str(n)), (n + 1, 1)) for n in reversed(range(16))]
    assert [(sample.id, share) for sample, share in size_classes(sized)] == [
        ("2", 0.25),
        ("6", 0.25),
        ("10", 0.25),
        ("14", 0.25),
    ]


def test_the_arithmetic_of_time_and_disk():
    sizes = [Size(width=1, height=1, share=0.75, request_ms=100), Size(width=2, height=2, share=0.25, request_ms=300)]
    probed = Probe(sizes=sizes, part_bytes=1000, execution_bytes=50)
    assert probed.execution_s == pytest.approx(0.15)  # 0.75 * 0.1 + 0.25 * 0.3
    assert probed.stored_bytes(40, per_trial=4) == pytest.approx(12_000)  # 10 trials of 1,000 and 40 times 50


class Sized:
    """Samples of two sizes, three of four small; each notes when its pictures are loaded."""

    def __init__(self, demo_sample, loaded):
        self._sample, self._loaded = demo_sample, loaded

    def split(self, name):
        return [self._sized(name, number, side) for number, side in enumerate((64, 64, 64, 128))]

    def _sized(self, name, number, side):
        def load_images():
            self._loaded.append(f"{name}{number}")
            return (Image.new("RGB", (side, side // 2)),)

        shapes = ((side // 2, side),)
        return replace(
            self._sample, id=f"{name}{number}", load_images=load_images, image_shapes=lambda: shapes, split=name
        )


def test_every_size_is_executed_under_every_setting_as_a_run_would(bundled, demo_sample, monkeypatch):
    loaded, threads, shots = [], [], []

    def noted(*given):
        threads.append(torch.get_num_threads())
        shots.extend(repeated(*given))
        return shots

    monkeypatch.setattr(forecast, "repeated", noted)
    data = Sized(demo_sample, loaded)
    asked = [*FEW_SETTINGS, "measure.max_new_tokens=2", f"measure.threads={torch.get_num_threads() + 1}"]
    workload = Workload.of(load_config(None, asked), bundled, data)
    probed = probe(workload, data.split("train"), bundled)
    assert [(size.width, size.height, size.share) for size in probed.sizes] == [(64, 32, 0.75), (128, 64, 0.25)]
    for number, size in enumerate(probed.sizes):
        assert size.request_ms == pytest.approx(fmean(shot.request_ms for shot in shots if shot.request == number))
    assert probed.part_bytes > probed.execution_bytes > 0
    assert loaded == ["train1", "train3"]  # one of each size, once: sizes are told by the heads
    assert threads == [torch.get_num_threads() + 1]


def test_no_more_samples_are_judged_than_there_are(bundled, demo_sample):
    data = Sized(demo_sample, [])
    few, many = (
        planned_executions(Workload.of(load_config(None, [*FEW_SETTINGS, f"validation.samples={n}"]), bundled, data))
        for n in (3, 300)
    )
    assert few["test"] / 3 == many["test"] / 4 > 0  # each split has four
