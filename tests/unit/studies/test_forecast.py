"""What a run will cost: sizes of images, their shares, and what is stored."""

from dataclasses import replace

import pytest
from PIL import Image

from chronostat.config import load_config
from chronostat.runs.workload import Workload
from chronostat.studies.forecast import Probe, Size, probe, size_classes
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


def test_every_size_is_executed_under_every_setting(bundled, demo_sample):
    class Sized:
        def split(self, name):
            sides = (64, 64, 64, 128)
            return [
                replace(demo_sample, id=f"{name}{n}", load_images=lambda side=side: (Image.new("RGB", (side, side)),))
                for n, side in enumerate(sides)
            ]

    workload = Workload.of(load_config(None, [*FEW_SETTINGS, "measure.max_new_tokens=2"]), bundled, Sized())
    probed = probe(workload, Sized().split("train"), bundled)
    assert [(size.width, size.share) for size in probed.sizes] == [(64, 0.75), (128, 0.25)]
    assert all(size.request_ms > 0 for size in probed.sizes)
    assert probed.part_bytes > probed.execution_bytes > 0
