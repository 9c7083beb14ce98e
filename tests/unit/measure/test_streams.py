"""Marks on a simulated GPU: those on a wrong stream are flagged; a host that loses its core beside one is no doubt."""

import functools

import pytest
import torch

from chronostat.errors import MeasurementError
from chronostat.measure.clock import CpuClock, CudaClock
from chronostat.measure.generate import measure_generate
from stand_ins.molmo_like import molmo_batch, molmo_like
from stand_ins.simulated_gpu import Event, SimulatedClock, SimulatedGpu

# the order of marks: entry, then the starts and ends of forward, vision, projector and blocks, the tokens, the return
ENTRY, VISION_OUT, FIRST_TOKEN, END = 0, 5, 9, 11
TOWER_MS, HEAD_MS = 100, 20


@pytest.fixture
def gpu(monkeypatch):
    return SimulatedGpu(monkeypatch)


@pytest.fixture
def model():
    return molmo_like()


def work(monkeypatch, module, do):
    original = module.forward

    @functools.wraps(original)
    def working(*args, **kwargs):
        do()
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "forward", working)


@pytest.fixture
def ahead(gpu, model, monkeypatch):
    """The GPU is busy in the vision tower, while the host queues on."""
    work(monkeypatch, model.model.vision_backbone, lambda: gpu.main.queue(TOWER_MS))


@pytest.fixture
def behind(gpu, model, monkeypatch):
    """The host takes its time in the head, while the GPU waits for it."""

    def launch():
        gpu.host_ms += HEAD_MS

    work(monkeypatch, model.lm_head, launch)


def timing(model, clock):
    return measure_generate(model, molmo_batch(), max_new_tokens=2, clock=clock).timing


@pytest.mark.usefixtures("ahead")
def test_the_time_of_a_stage_is_the_devices(gpu, model):
    seen = timing(model, SimulatedClock(gpu))
    assert (seen.source, seen.vision_ms, seen.prefill_ms, seen.total_ms) == ("measured", 100, 100, 100)


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("lost_after_ms", [{}, {VISION_OUT: 30}])
def test_marks_on_a_wrong_stream_are_flagged(gpu, model, lost_after_ms):
    seen = timing(model, SimulatedClock(gpu, wrong=True, lost_after_ms=lost_after_ms))
    assert seen.source == "total_only"
    assert "ms from the stream that the model works on: its clock uses another stream" in seen.unseen


@pytest.mark.usefixtures("ahead")
def test_one_mark_at_the_end_of_a_stage_on_a_wrong_stream_is_flagged(gpu, model):
    seen = timing(model, SimulatedClock(gpu, wrong=(VISION_OUT,)))
    assert seen.source == "total_only"
    assert "ms from the stream that the model works on: its clock uses another stream" in seen.unseen


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("number", range(END + 1))
@pytest.mark.parametrize("side", ["lost_before_ms", "lost_after_ms"])
def test_a_host_that_loses_its_core_beside_a_mark_is_no_doubt(gpu, model, number, side):
    seen = timing(model, SimulatedClock(gpu, **{side: {number: 5}}))
    assert (seen.source, seen.unseen) == ("measured", None)
    assert seen.total_ms == 45  # 2 * 20 + 5


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("lost_before_ms", [{}, {ENTRY: 5}])
def test_work_on_a_stream_that_nobody_waits_for_is_flagged(gpu, model, monkeypatch, lost_before_ms):
    work(monkeypatch, model.model.vision_backbone, lambda: gpu.side.queue(60))
    seen = timing(model, SimulatedClock(gpu, lost_before_ms=lost_before_ms))
    assert seen.source == "total_only"
    assert "work ran on a stream that the model's own did not wait for" in seen.unseen
    assert seen.total_ms == 60 + sum(lost_before_ms.values())


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("lie", [lambda ms: ms / 2, lambda ms: ms * 2, lambda _: 1e-3])
def test_a_patched_elapsed_time_is_flagged(gpu, model, monkeypatch, lie):
    honest = Event.elapsed_time
    monkeypatch.setattr(Event, "elapsed_time", lambda start, end: lie(honest(start, end)))
    seen = timing(model, SimulatedClock(gpu))
    assert seen.source == "total_only"
    assert "or the marks are not to be trusted" in seen.unseen


@pytest.mark.parametrize(
    ("device", "other", "followed"),
    [
        (torch.device("cuda", 1), torch.device("cuda", 1), True),
        (torch.device("cuda", 0), torch.device("cuda", 1), False),
        (torch.device("cuda", 0), torch.device("cpu"), False),
    ],
)
def test_a_clock_of_a_gpu_follows_that_gpu_only(device, other, followed):
    assert CudaClock(device).follows(other) is followed


def test_a_clock_of_the_host_follows_no_gpu():
    assert CpuClock().follows(torch.device("cpu"))
    assert not CpuClock().follows(torch.device("cuda", 0))  # it would time the launches


def test_a_clock_of_another_device_is_refused(model):
    with pytest.raises(
        MeasurementError, match=r"a CudaClock of another device does not follow cpu.*clock_for\(device\)"
    ):
        measure_generate(model, molmo_batch(), max_new_tokens=1, clock=CudaClock(torch.device("cuda", 0)))
