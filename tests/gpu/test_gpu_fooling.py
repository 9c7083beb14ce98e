"""Ways of fooling a latency tool that need a GPU: other streams, patched events; and a decode step that is compiled."""

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from chronostat import measuring
from chronostat.data.demo import DemoTask
from chronostat.errors import MeasurementError
from chronostat.measure.clock import CpuClock, CudaClock
from chronostat.measure.generate import measure_generate
from chronostat.models.compiled import graphs_compiled
from chronostat.models.load import load_vlm
from stand_ins.batches import batch_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NEW_TOKENS = 4
LONG_CYCLES = 200_000_000  # about 0.1 s of an H100


@pytest.fixture(scope="module")
def vlm():
    return load_vlm(device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def batch(vlm):
    sample = DemoTask().split("train")[0]
    return batch_of(vlm, sample.load_images(), sample.prompt)


@pytest.fixture(scope="module", autouse=True)
def _warm(vlm, batch):
    for _ in range(3):
        measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS)


def timing_of(vlm, batch, clock=None):
    return measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS, clock=clock).timing


@pytest.fixture
def slow_tower(vlm, monkeypatch):
    """The GPU, not the host, is busy in the vision tower: the host runs ahead of it."""
    tower = vlm.model.model.vision_tower
    original = tower.forward

    def slow(*args, **kwargs):
        torch.cuda._sleep(LONG_CYCLES)
        return original(*args, **kwargs)

    monkeypatch.setattr(tower, "forward", slow)


class WrongStream(CudaClock):
    """Records its events on a stream where nothing runs."""

    def __init__(self, device):
        super().__init__(device)
        self._idle = torch.cuda.Stream(device)

    def mark(self):
        with torch.cuda.stream(self._idle):
            return super().mark()


@pytest.mark.usefixtures("slow_tower")
def test_marks_on_a_wrong_stream_are_flagged(vlm, batch):
    timing = timing_of(vlm, batch, WrongStream(vlm.model.device))
    assert timing.source == "total_only"
    assert "from the stream that the model works on: its clock uses another stream" in timing.unseen


@pytest.mark.usefixtures("slow_tower")
def test_the_same_on_the_right_stream_is_measured(vlm, batch):
    timing = timing_of(vlm, batch)
    assert (timing.source, timing.unseen) == ("measured", None)
    assert timing.vision_ms > 10


def test_work_on_a_side_stream_that_nobody_waits_for_is_flagged(vlm, batch, monkeypatch):
    side, head = torch.cuda.Stream(), vlm.model.lm_head
    original = head.forward

    def beside(hidden):
        with torch.cuda.stream(side):
            torch.cuda._sleep(2 * LONG_CYCLES)
        return original(hidden)

    monkeypatch.setattr(head, "forward", beside)
    timing = timing_of(vlm, batch)
    assert timing.source == "total_only"
    assert "work ran on a stream that the model's own did not wait for" in timing.unseen
    assert timing.total_ms > 50  # the synchronize after the call waits for every stream


@pytest.mark.usefixtures("slow_tower")
@pytest.mark.parametrize("lie", [lambda ms: ms / 2, lambda ms: 1e-3])
def test_a_patched_elapsed_time_is_flagged(vlm, batch, monkeypatch, lie):
    honest = torch.cuda.Event.elapsed_time
    monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda start, end: lie(honest(start, end)))
    timing = timing_of(vlm, batch)
    assert timing.source == "total_only"
    assert "or the marks are not to be trusted" in timing.unseen


def test_the_clock_of_the_host_is_refused(vlm, batch):
    with pytest.raises(MeasurementError, match="a CpuClock of another device does not follow cuda"):
        timing_of(vlm, batch, CpuClock())


@pytest.mark.filterwarnings("ignore")  # inductor gives advice while it compiles, such as to allow TF32
def test_a_decode_step_that_generate_compiles_by_itself(vlm, batch):
    from torch import _dynamo

    compiling = CompileConfig(fullgraph=True, mode="default")
    config = GenerationConfig(
        cache_implementation="static",
        compile_config=compiling,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    try:
        plain = vlm.model.generate(**batch, generation_config=config)
        graphs = graphs_compiled()
        assert graphs > 0
        for _ in range(3):
            with measuring(vlm.model) as measured:
                vlm.model.generate(**batch, generation_config=config)
            assert measured.compiled
            assert (measured.timing.source, measured.timing.unseen) == ("measured", None)
            assert torch.equal(measured.sequences, plain)
        assert graphs_compiled() == graphs
    finally:
        _dynamo.reset()
        for name in ("_compiled_call", "_last_compile_config"):
            vars(vlm.model).pop(name, None)
