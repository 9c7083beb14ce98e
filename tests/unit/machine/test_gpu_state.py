import os
from types import SimpleNamespace

import pynvml
import pytest
import torch

from chronostat.machine import gpu
from chronostat.machine.gpu import GpuProperties, GpuState, NvmlGpu, gpu_of, held_by, other_processes, own_pids

CUDA = torch.device("cuda", 0)


def counter(field, ns, status=0):
    return SimpleNamespace(fieldId=field, nvmlReturn=status, value=SimpleNamespace(ullVal=ns))


ANSWERS = {
    "nvmlInit": None,
    "nvmlDeviceGetHandleByUUID": "card",
    "nvmlDeviceIsMigDeviceHandle": 0,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetClockInfo": 1700,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetApplicationsClock": 1755,
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=31), SimpleNamespace(pid=32)],
    "nvmlDeviceGetFieldValues": [counter(74, 5_000_000), counter(75, 0), counter(77, 9, status=3)],
    "nvmlSystemGetDriverVersion": "580.95.05",
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetTemperature": 41,
    "nvmlDeviceGetPowerUsage": 120_500,
    "nvmlDeviceGetPowerManagementLimit": 700_000,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30, used=2**30),
}
"""What NVML answers on one card, by the names of its functions."""


@pytest.fixture
def driver(monkeypatch):
    """NVML as a dict of answers, to be changed by tests."""
    answers = dict(ANSWERS)

    def function(name):
        def call(*_):
            if name not in answers:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answers[name]

        return call

    for name in ANSWERS:
        monkeypatch.setattr(pynvml, name, function(name))
    monkeypatch.setattr(gpu, "_known", {})
    return answers


@pytest.mark.usefixtures("driver")
def test_the_state_of_a_card():
    assert NvmlGpu("GPU-1").state() == GpuState(
        reasons=0x4,
        held_ms={"temperature": 0.0},  # the third counter was not given
        power_capped_ms=5.0,  # 5,000,000 ns
        sm_clock_mhz=1700,
        full_sm_clock_mhz=1755,
        pids=frozenset({31, 32}),
    )


@pytest.mark.usefixtures("driver")
def test_the_facts_of_a_card():
    assert NvmlGpu("GPU-1").properties() == GpuProperties(
        uuid="GPU-1",
        driver="580.95.05",
        max_sm_clock_mhz=1980,
        application_sm_clock_mhz=1755,
        persistence=True,
        mig=False,
        temperature_c=41,
        power_w=120.5,
        power_limit_w=700.0,
        memory_total_mib=81920,
        memory_used_mib=1024,
    )


def test_what_a_card_does_not_tell_is_absent(driver):
    for name in list(driver)[3:]:
        del driver[name]
    assert NvmlGpu("GPU-1").state() == GpuState()
    assert NvmlGpu("GPU-1").properties() == GpuProperties(uuid="GPU-1", driver="unknown")


def test_a_card_without_set_clocks_should_run_at_its_highest(driver):
    del driver["nvmlDeviceGetApplicationsClock"]
    assert NvmlGpu("GPU-1").state().full_sm_clock_mhz == 1980


def test_the_clocks_of_a_slice_are_those_of_its_card(driver, monkeypatch):
    driver["nvmlDeviceIsMigDeviceHandle"] = 1
    asked = []
    monkeypatch.setattr(pynvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", lambda _: "whole card")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, _: asked.append(handle))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: asked.append(handle) or [])
    NvmlGpu("MIG-1").state()
    assert asked == ["whole card", "card"]  # what runs on other slices is no neighbour


@pytest.mark.usefixtures("driver")
def test_the_gpu_of_a_torch_device_is_found_by_its_serial_identity_once(monkeypatch):
    tried = []

    def handle(uuid):
        tried.append(uuid)
        if uuid != "GPU-abc":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "card"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    found = gpu_of(CUDA)
    assert found is not None
    assert found.properties().uuid == "GPU-abc"
    assert gpu_of(CUDA) is found
    assert tried == ["abc", "GPU-abc"]


def test_without_a_driver_nothing_is_known(driver, monkeypatch):
    del driver["nvmlInit"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    assert gpu_of(CUDA) is None
    assert gpu_of(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("pids", "others"),
    [
        ({7, 8, 9}, 2),  # this process is 7
        ({7}, 0),
        ({4711}, 0),  # numbered by the host: the one that is listed is this one
        ({4711, 4712}, 1),
        (set(), None),  # this process has a context, so the driver hides all of them
        (None, None),
    ],
)
def test_other_processes_with_and_without_a_namespace_of_process_numbers(pids, others):
    assert other_processes(None if pids is None else frozenset(pids), frozenset({7})) == others


def test_the_numbers_of_this_process(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nNSpid:\t4711\t12\n")
    assert own_pids(tmp_path) == {os.getpid(), 4711, 12}
    assert own_pids(tmp_path / "nothing") == {os.getpid()}


def test_reasons_have_names():
    assert held_by(None) == held_by(0x113) == ()
    assert held_by(0xFF) == (
        "HwSlowdown",
        "SwThermalSlowdown",
        "HwThermalSlowdown",
        "HwPowerBrakeSlowdown",
    )
