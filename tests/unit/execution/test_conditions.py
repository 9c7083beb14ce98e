import platform
import re
import subprocess
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from chronostat.errors import UnlikeConditions
from chronostat.execution import conditions
from chronostat.execution.conditions import read_conditions
from chronostat.machine.gpu import GpuProperties
from chronostat.machine.stabilise import stabilised
from chronostat.version import VERSION


def test_the_conditions_of_this_process(bundled):
    read = read_conditions(bundled.model)
    assert (read.device, read.driver, read.dtype) == ("cpu", "none", "float32")
    assert (read.threads, read.torch, read.transformers) == (1, torch.__version__, transformers.__version__)
    assert read.attention == "sdpa"
    assert read.cores >= 1
    assert (read.gpu, read.compiled, read.cache, read.flush_denormals) == ("none", False, "default", False)
    assert read.python == platform.python_version()
    absent = {name for name, value in asdict(read).items() if value in {None, "", "not recorded"}}
    assert absent == {"max_sm_clock_mhz", "application_sm_clock_mhz", "power_limit_w", "persistence", "mig"}


def test_a_card_is_a_condition_with_its_serial_identity_and_clocks(bundled, monkeypatch):
    clocks = {"max_sm_clock_mhz": 1980, "application_sm_clock_mhz": 1755, "power_limit_w": 700.0}
    card = GpuProperties(uuid="GPU-1", driver="580", persistence=True, **clocks)
    monkeypatch.setattr(conditions, "gpu_of", lambda _: SimpleNamespace(properties=lambda: card))
    read = read_conditions(bundled.model)
    assert (read.gpu, {name: getattr(read, name) for name in clocks}) == ("GPU-1", clocks)
    assert (read.persistence, read.mig) == (True, None)


def test_flushed_denormals_are_a_condition(bundled):
    plain = read_conditions(bundled.model)
    with stabilised(flush_denormals=True):
        flushed = read_conditions(bundled.model)
    with pytest.raises(UnlikeConditions, match=r"conditions: flush_denormals: False != True$"):
        plain.require_comparable(flushed)


def test_a_compiled_part_and_the_kind_of_cache_are_conditions(bundled, monkeypatch):
    plain = read_conditions(bundled.model)
    monkeypatch.setattr(conditions, "is_compiled", lambda module: module is bundled.model)
    monkeypatch.setattr(bundled.model.generation_config, "cache_implementation", "static")
    with pytest.raises(UnlikeConditions, match=r"conditions: compiled: False != True; cache: default != static$"):
        plain.require_comparable(read_conditions(bundled.model))


@pytest.mark.parametrize(
    ("cpus", "text"), [([3], "3"), ([0, 1, 2, 3], "0-3"), ([0, 1, 5, 7, 8], "0-1,5,7-8"), ([], "")]
)
def test_sets_of_cpus_are_written_as_linux_does(cpus, text):
    assert conditions._ranges(cpus) == text


def test_source_that_lies_in_no_repository_of_its_own_has_a_version(tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "__file__", str(tmp_path / "a/b/c/d.py"))
    assert conditions._commit.__wrapped__() == VERSION


def test_the_commit_of_the_source_and_whether_it_was_changed(tmp_path, monkeypatch):
    source = tmp_path / "src/chronostat/execution/conditions.py"
    source.parent.mkdir(parents=True)
    source.write_text("first")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    monkeypatch.setattr(conditions, "__file__", str(source))
    commit = conditions._commit.__wrapped__()
    assert re.fullmatch(r"[0-9a-f]{12}", commit)
    source.write_text("second")
    assert conditions._commit.__wrapped__() == f"{commit}+changes"


def test_reading_twice_gives_equal_conditions(bundled):
    read_conditions(bundled.model).require_comparable(read_conditions(bundled.model))


def test_the_number_of_threads_is_a_condition(bundled):
    read = read_conditions(bundled.model)
    with pytest.raises(UnlikeConditions, match="threads: 1 != 2"):
        read.require_comparable(replace(read, threads=2))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Sat May 24\nGCC version: 12.2.0", "575.57.08"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)",
            "580.95.05",
        ),
        ("nothing of the kind", "570.1"),  # what NVML says
    ],
)
def test_the_driver_version_is_found_in_the_kernel_modules_text(tmp_path, monkeypatch, text, version):
    file = tmp_path / "version"
    file.write_text(text)
    monkeypatch.setattr(conditions, "Path", lambda _: file)
    assert conditions._cuda_driver(GpuProperties(uuid="GPU-1", driver="570.1")) == version
