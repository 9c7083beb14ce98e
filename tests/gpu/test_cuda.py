"""The same definitions on a CUDA device: events on the current stream, no waiting in between, the same output."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from chronostat.data.samples import Sample
from chronostat.errors import DataError, ModelError
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import execute, request_for
from chronostat.knobs.registry import applied, find_space
from chronostat.measure.clock import CudaClock, clock_for
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.models.load import load_vlm
from chronostat.records import Setting
from stand_ins.batches import batch_of
from stand_ins.observing import Snapshot, counted_calls

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NEW_TOKENS = 4
SLEEP_MS = 200.0  # far more than any stage of this small model takes by itself
PARTS = ("vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms", "decode_ms", "other_ms")
BLOCKS = "model.language_model.layers"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def vlm(request):
    return load_vlm(device="cuda", dtype=request.param)


@pytest.fixture(scope="module")
def sample():
    noise = np.random.default_rng(0).integers(0, 256, size=(128, 128, 3), dtype=np.uint8)
    return Sample(
        id="noise",
        split="train",
        prompt="What color is the background?",
        references=("red",),
        load_images=lambda: (Image.fromarray(noise),),
    )


@pytest.fixture(scope="module")
def batch(vlm, sample):
    return batch_of(vlm, sample.load_images(), sample.prompt)


@pytest.fixture(scope="module", autouse=True)
def _warm(vlm, batch):
    for _ in range(3):
        measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def sleep_cycles():
    """Cycles that let the device wait for ``SLEEP_MS``."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(500_000_000)  # the device leaves its idle clock rate
    start.record()
    torch.cuda._sleep(100_000_000)
    end.record()
    torch.cuda.synchronize()
    return round(100_000_000 * SLEEP_MS / start.elapsed_time(end))


@pytest.fixture
def device_sleep(vlm, monkeypatch, sleep_cycles):
    """Lets the device, not the host, wait inside one call of a part."""

    def put(path, call=0):
        module = vlm.model.get_submodule(path)
        original, seen = module.forward, Counter()

        def slow(*args, **kwargs):
            if seen["calls"] == call:
                torch.cuda._sleep(sleep_cycles)
            seen["calls"] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, "forward", slow)

    return put


def stages(vlm, batch, **options):
    timing = measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS, **options).timing
    assert timing.source == "measured", timing.unseen
    return timing


def test_output_is_that_of_a_plain_call_and_nothing_stays(vlm, batch):
    plain = vlm.model.generate(**batch, max_new_tokens=8)
    before = Snapshot(vlm.model)
    measured = measure_generate(vlm.model, batch, max_new_tokens=8)
    before.assert_equals(vlm.model)
    assert torch.equal(measured.sequences, plain)


def test_stages_lie_inside_each_other(vlm, batch):
    timing = stages(vlm, batch)
    parts = timing.vision_ms + timing.projector_ms + timing.llm_prefill_ms + timing.prefill_rest_ms
    assert parts == pytest.approx(timing.prefill_ms, abs=0.05)
    assert min(timing.vision_ms, timing.projector_ms, timing.llm_prefill_ms) > 0
    assert timing.prefill_rest_ms >= 0
    assert timing.prefill_ms <= timing.ttft_ms <= timing.total_ms + 0.1
    assert timing.other_ms >= -0.1


@pytest.mark.parametrize(
    ("path", "call", "stage"),
    [
        ("model.vision_tower", 0, "vision_ms"),
        ("model.multi_modal_projector", 0, "projector_ms"),
        (f"{BLOCKS}.0", 0, "llm_prefill_ms"),
        (f"{BLOCKS}.7", 0, "llm_prefill_ms"),
        ("lm_head", 0, "prefill_rest_ms"),
        ("lm_head", 2, "decode_ms"),
    ],
)
def test_device_time_lands_in_its_stage_and_nowhere_else(vlm, batch, device_sleep, path, call, stage):
    device_sleep(path, call)
    timing = stages(vlm, batch)
    for part in PARTS:
        if part == stage:
            assert SLEEP_MS * 0.8 < getattr(timing, part) < SLEEP_MS * 1.7
        else:
            assert getattr(timing, part) < SLEEP_MS * 0.6
    assert timing.total_ms > SLEEP_MS * 0.8


def test_attention_by_the_flash_kernels_of_torch(vlm, batch):
    if vlm.model.dtype != torch.bfloat16:
        pytest.skip("these kernels know no float32")
    by_default = measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        measured = measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS)
    flash = sum("flash" in event.name for event in seen.events() if event.device_type == DeviceType.CUDA)
    attentions = len(anatomy_of(vlm.model).blocks) * NEW_TOKENS
    assert flash >= attentions  # and those of the vision tower; any other kernel would have raised
    assert measured.timing.source == "measured", measured.timing.unseen
    assert torch.equal(measured.sequences, by_default.sequences)


class CountingClock(CudaClock):
    """Notes each time it waits for the device."""

    def __init__(self, device):
        super().__init__(device)
        self.waits = 0

    def synchronize(self):
        self.waits += 1
        super().synchronize()


def test_one_wait_before_one_after_and_events_are_reused(vlm, batch):
    clock = CountingClock(vlm.model.device)
    stages(vlm, batch, clock=clock)
    events = len(clock._pool)
    stages(vlm, batch, clock=clock)
    assert clock.waits == 4
    assert len(clock._pool) == events


def test_work_on_a_stream_that_is_not_the_default_one(vlm, batch, device_sleep):
    device_sleep("model.vision_tower")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        timing = stages(vlm, batch)
    torch.cuda.synchronize()
    assert SLEEP_MS * 0.8 < timing.vision_ms < SLEEP_MS * 1.7
    assert timing.llm_prefill_ms < SLEEP_MS * 0.6


def test_the_clock_and_the_conditions_name_the_device(vlm):
    assert isinstance(clock_for(vlm.model.device), CudaClock)
    assert clock_for(vlm.model.device) is clock_for(vlm.model.device)
    conditions = read_conditions(vlm.model)
    assert conditions.device == torch.cuda.get_device_name()
    assert conditions.driver != "none"
    assert conditions.dtype == str(vlm.model.dtype).removeprefix("torch.")


def test_a_batch_on_the_host_is_refused(vlm, batch):
    on_host = {key: value.cpu() for key, value in batch.items()}
    with pytest.raises(DataError, match="on cpu, the model on cuda:0; move the batch there first"):
        measure_generate(vlm.model, on_host, max_new_tokens=1)


def test_a_model_on_two_devices_is_refused(vlm, batch):
    spread = copy.deepcopy(vlm.model)
    spread.model.vision_tower.to("cpu")
    with pytest.raises(ModelError, match="is spread over cpu, cuda:0; one clock can only follow one device"):
        measure_generate(spread, batch, max_new_tokens=1)


def test_execute_measures_every_knob_and_undoes_it(vlm, sample):
    request = request_for(sample, vlm.processor, None)
    execute(vlm.model, request, setting=Setting(), max_new_tokens=1)
    before = Snapshot(vlm.model)
    space, _ = find_space(vlm.model, vlm.processor, {})
    for setting in (space.full, space.settings[-1]):
        execution = execute(vlm.model, request, setting=setting, max_new_tokens=NEW_TOKENS)
        assert execution.timing.source == "measured"
        assert execution.image_tokens == setting["vision_tokens"]
        assert execution.preprocess_ms > 0
    before.assert_equals(vlm.model)


def test_knobs_change_the_work_on_the_device(vlm, batch):
    blocks = {index: vlm.model.get_submodule(path) for index, path in enumerate(anatomy_of(vlm.model).blocks)}
    experts = [module for name, module in vlm.model.named_modules() if name.endswith("mlp.experts")]
    per_token = set()
    handles = [module.register_forward_pre_hook(lambda _, x: per_token.add(x[1].shape[-1])) for module in experts]
    with applied(Setting(moe_topk=2, block_skip=(0, 5)), vlm.model, vlm.processor), counted_calls(blocks) as ran:
        measure_generate(vlm.model, batch, max_new_tokens=1)
    for handle in handles:
        handle.remove()
    assert per_token == {2}
    assert set(blocks) - set(ran) == {0, 5}


@pytest.mark.parametrize("skipped", [(0,), (7,), (0, 3, 4)])
def test_skipping_equals_a_model_built_without_those_blocks(vlm, batch, skipped):
    smaller = copy.deepcopy(vlm.model)
    kept = [layer for i, layer in enumerate(smaller.model.language_model.layers) if i not in skipped]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    smaller.model.language_model.layers = nn.ModuleList(kept)
    smaller.config.text_config.num_hidden_layers = len(kept)
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    expected = smaller.generate(**batch, **options)
    with applied(Setting(block_skip=skipped), vlm.model, vlm.processor):
        assert torch.equal(vlm.model.generate(**batch, **options), expected)


def test_device_auto_is_bfloat16_on_the_accelerator():
    model = load_vlm().model
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)


def test_a_seed_draws_the_same_answer_and_leaves_every_random_stream_as_it_was(vlm, sample, monkeypatch):
    config = copy.deepcopy(vlm.model.generation_config)
    config.update(do_sample=True, temperature=30.0, top_k=0)
    monkeypatch.setattr(vlm.model, "generation_config", config)
    request = request_for(sample, vlm.processor, None)

    def answer(seed):
        options = {"setting": Setting(), "max_new_tokens": NEW_TOKENS, "sampling_seed": seed}
        return execute(vlm.model, request, **options).output_ids

    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    answers = [answer(seed) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    after = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    assert all(map(torch.equal, states, after))
