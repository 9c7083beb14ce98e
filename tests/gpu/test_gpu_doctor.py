"""What NVML says of a real GPU, and what doctor makes of it."""

import json

import pytest
import torch

from chronostat.execution.conditions import read_conditions
from chronostat.machine import disturbance
from chronostat.machine.disturbance import reader_for
from chronostat.machine.gpu import gpu_of, other_processes, own_pids
from chronostat.measure.generate import measure_generate
from chronostat.models.load import load_vlm
from e2e.commands import typed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def vlm():
    return load_vlm(device="cuda")


@pytest.fixture
def card(vlm):
    found = gpu_of(vlm.model.device)
    assert found is not None, "NVML does not find the card that torch uses"
    return found


def test_the_card_tells_clocks_modes_and_memory(card):
    properties = card.properties()
    assert properties.driver != "unknown"
    assert properties.max_sm_clock_mhz > 0
    assert properties.memory_total_mib > properties.memory_used_mib > 0
    assert 0 < properties.temperature_c < 110
    assert properties.persistence in {True, False}


def test_the_state_is_told_before_and_after_a_call(card):
    before, after = card.state(), card.state()
    assert before.reasons is not None
    assert before.sm_clock_mhz > 0
    assert all(after.held_ms[policy] >= held_ms for policy, held_ms in before.held_ms.items())


def test_this_process_is_no_other_process(card, vlm):
    torch.ones(1, device=vlm.model.device)
    pids = card.state().pids
    assert other_processes(pids, own_pids()) == (len(pids) - 1 if pids else None)


def test_conditions_name_the_card(vlm, card):
    conditions = read_conditions(vlm.model)
    assert conditions.gpu == card.properties().uuid
    assert conditions.max_sm_clock_mhz == card.properties().max_sm_clock_mhz
    assert conditions.power_limit_w == card.properties().power_limit_w > 0


def test_a_measured_call_is_watched(vlm, demo_batch, monkeypatch):
    batch = {name: value.to(vlm.model.device) for name, value in demo_batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(vlm.model.dtype)
    assert reader_for(vlm.model.device)().gpu.reasons is not None
    monkeypatch.setattr(disturbance, "other_processes", lambda *_: 1)
    measured = measure_generate(vlm.model, batch, max_new_tokens=2)
    assert "another process on the GPU" in measured.disturbed


def test_doctor_examines_the_gpu(tmp_path):
    said = typed("doctor", "--device", "cuda", "--seconds", "5", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert said.status == found["exit_status"]
    topics = {each["topic"] for each in found["findings"]}
    assert {"GPU clock", "GPU throttling", "GPU temperature", "GPU memory", "GPU persistence", "MIG"} <= topics
    assert found["conditions"]["device"] == torch.cuda.get_device_name()
