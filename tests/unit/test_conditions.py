from dataclasses import asdict, replace

import pytest
import torch
import transformers

from chronostat.errors import UnlikeConditions
from chronostat.measure import conditions
from chronostat.measure.conditions import read_conditions


def test_the_conditions_of_this_process(bundled):
    read = read_conditions(bundled.model)
    assert (read.device, read.driver, read.dtype) == ("cpu", "none", "float32")
    assert (read.threads, read.torch, read.transformers) == (1, torch.__version__, transformers.__version__)
    assert read.attention == "sdpa"
    assert read.cores >= 1
    assert all(asdict(read).values())


def test_reading_twice_gives_equal_conditions(bundled):
    read_conditions(bundled.model).require_like(read_conditions(bundled.model))


def test_the_number_of_threads_is_a_condition(bundled):
    read = read_conditions(bundled.model)
    with pytest.raises(UnlikeConditions, match="threads: 1 != 2"):
        read.require_like(replace(read, threads=2))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24\nGCC version: 12.2.0", "575.57.08"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)",
            "580.95.05",
        ),
        ("nothing of the kind", "unknown"),
    ],
)
def test_the_driver_version_is_found_in_the_kernel_modules_text(tmp_path, monkeypatch, text, version):
    file = tmp_path / "version"
    file.write_text(text)
    monkeypatch.setattr(conditions, "Path", lambda _: file)
    assert conditions._cuda_driver() == version
