"""Captured graphs on a CUDA device: the kernels of an eager call, bit for bit, their marks, and nothing left behind."""

import gc
from collections import Counter
from weakref import ref

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

from chronostat.data.demo.task import DemoTask
from chronostat.engine import PlainCapturing, graphed
from chronostat.execution.execute import execute, request_for
from chronostat.knobs.registry import applied
from chronostat.measure.generate import measure_generate
from chronostat.models.load import load_vlm
from chronostat.models.prepare import prepare
from chronostat.records import Setting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS = ("", "moe_topk=1", "block_skip=2,3", "block_skip=0,7 moe_topk=2")
LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6}
SLEEP_MS = 50.0
PARTS = ("vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms", "decode_ms", "other_ms")


@pytest.fixture(scope="module")
def vlm():
    return load_vlm(device="cuda", dtype="bfloat16")


@pytest.fixture(scope="module")
def batches(vlm):
    samples = DemoTask(seed=0).split("train")[:4]
    return [
        prepare(
            vlm.processor,
            sample.load_images(),
            sample.prompt,
            device=vlm.model.device,
            dtype=vlm.model.dtype,
            image_arguments={},
        )
        for sample in samples
    ]


class Scores(LogitsProcessor):
    """Notes the scores of each token."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(scores.clone())
        return scores


def scores_of(vlm, batch, **options):
    scores = Scores()
    vlm.model.generate(**batch, **LENGTH, **options, logits_processor=LogitsProcessorList([scores]))
    return torch.stack(scores.seen)


@pytest.mark.parametrize("text", SETTINGS)
def test_scores_are_those_of_the_same_kernels_without_graphs(vlm, batches, text):
    with applied(Setting.parse(text) if text else Setting(), vlm.model, vlm.processor):
        eager = [scores_of(vlm, batch) for batch in batches]
        with graphed(vlm.model, padding=0, capturing=PlainCapturing()) as engine:
            plain = [scores_of(vlm, batch) for batch in batches]
            assert engine.last.way == "graph", engine.last.reason
        with graphed(vlm.model, padding=0) as engine:
            for _ in range(2):
                replayed = [scores_of(vlm, batch) for batch in batches]
                assert (engine.last.way, engine.last.reason) == ("graph", None)
            assert engine.last.captured == 0
    for one, other, without in zip(replayed, plain, eager, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[0], without[0])  # the prefill: no cache of fixed length comes into it


def test_answers_of_padded_prompts_are_those_of_eager(vlm):
    samples = DemoTask(seed=0).split("train")[:20]
    requests = [request_for(sample, vlm.processor, None) for sample in samples]

    def answers(setting):
        return [execute(vlm.model, r, setting=setting, max_new_tokens=4).output_ids for r in requests]

    for text in SETTINGS[:2]:
        setting = Setting.parse(text) if text else Setting()
        eager = answers(setting)
        with graphed(vlm.model) as engine:
            assert answers(setting) == eager
            assert len(engine.kept) < 6


def test_stages_of_replays_lie_inside_each_other(vlm, batches):
    with graphed(vlm.model) as engine:
        measured = [measure_generate(vlm.model, batches[0], max_new_tokens=4) for _ in range(4)]
        assert engine.last.way == "graph"
    assert "the engine captured" in measured[0].disturbed
    for one in measured[1:]:
        timing = one.timing
        assert (timing.source, timing.unseen, one.replayed) == ("measured", None, True)
        assert "the engine captured" not in (one.disturbed or "")
        parts = timing.vision_ms + timing.projector_ms + timing.llm_prefill_ms + timing.prefill_rest_ms
        assert parts == pytest.approx(timing.prefill_ms, abs=0.05)
        assert 0 < timing.llm_prefill_ms < timing.prefill_ms


@pytest.fixture(scope="module")
def sleep_cycles():
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(500_000_000)
    start.record()
    torch.cuda._sleep(100_000_000)
    end.record()
    torch.cuda.synchronize()
    return round(100_000_000 * SLEEP_MS / start.elapsed_time(end))


@pytest.mark.parametrize(
    ("path", "call", "stage"),
    [
        ("model.vision_tower", 0, "vision_ms"),
        ("model.vision_tower.encoder.layer.0", None, "vision_ms"),
        ("model.multi_modal_projector", 0, "projector_ms"),
        ("model.language_model.layers.0", None, "llm_prefill_ms"),
        ("model.language_model.layers.7", None, "llm_prefill_ms"),
        ("lm_head", 0, "prefill_rest_ms"),
        ("lm_head", 2, "decode_ms"),
    ],
)
def test_device_time_lands_in_its_stage(vlm, batches, monkeypatch, sleep_cycles, path, call, stage):
    module = vlm.model.get_submodule(path)
    original, seen = module.forward, Counter()

    def slow(*args, **kwargs):
        if seen["calls"] == call:
            torch.cuda._sleep(sleep_cycles)
        seen["calls"] += 1
        return original(*args, **kwargs)

    def slow_in_prefill(hidden, *args, **kwargs):
        if hidden.shape[1] > 1:
            torch.cuda._sleep(sleep_cycles)
        return original(hidden, *args, **kwargs)

    with graphed(vlm.model) as engine:
        measure_generate(vlm.model, batches[0], max_new_tokens=4)
        monkeypatch.setattr(module, "forward", slow_in_prefill if call is None else slow)
        if call is None:
            measure_generate(vlm.model, batches[0], max_new_tokens=4)  # another state: it is captured with its sleep
        timing = measure_generate(vlm.model, batches[0], max_new_tokens=4).timing
        assert (engine.last.way, engine.last.captured) == ("graph", 0)
    for part in PARTS:
        if part == stage:
            assert SLEEP_MS * 0.8 < getattr(timing, part) < SLEEP_MS * 1.7
        else:
            assert getattr(timing, part) < SLEEP_MS * 0.6


def test_a_weight_in_anothers_place_and_one_changed_in_place_are_followed(vlm, batches):
    projection = vlm.model.model.language_model.layers[3].self_attn.o_proj
    old = projection.weight
    with graphed(vlm.model, padding=0) as engine:
        before = scores_of(vlm, batches[0])
        projection.weight = nn.Parameter(old.detach() * 4, requires_grad=False)
        replaced = scores_of(vlm, batches[0])
        assert engine.last.captured == 2
        with torch.no_grad():
            projection.weight.div_(4)  # exactly what it was
        restored = scores_of(vlm, batches[0])
        assert engine.last.captured == 0
        projection.weight = old
    assert not torch.equal(before, replaced)
    assert torch.equal(before, restored)


def test_nothing_of_the_graphs_is_left(vlm, batches):
    with graphed(vlm.model):
        scores_of(vlm, batches[0])  # the stream that captures, and what cuBLAS keeps for it, stay
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with graphed(vlm.model) as engine:
        scores_of(vlm, batches[0])
        held = [ref(thing) for program in engine.kept for thing in (program, program.room, program.replay)]
        assert torch.cuda.memory_allocated() > before
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    assert [alive() for alive in held] == [None] * len(held)
    assert torch.cuda.memory_allocated() == before


def test_what_cuda_cannot_capture_runs_eagerly_and_says_why(batches):
    vlm = load_vlm(device="cuda", dtype="float32")
    batch = {key: value.float() if value.is_floating_point() else value for key, value in batches[0].items()}
    eager = scores_of(vlm, batch)
    with graphed(vlm.model, padding=0) as engine:
        replayed = scores_of(vlm, batch)
        if engine.last.way == "eager":
            assert engine.last.reason.startswith("CUDA cannot capture it: ")
        assert torch.equal(replayed[0], eager[0])
        assert torch.allclose(replayed, eager, atol=1e-4)  # decode: keys and values lie in another layout


def test_sampling_draws_the_same_tokens(vlm, batches):
    def drawn():
        torch.manual_seed(3)
        return vlm.model.generate(**batches[0], **LENGTH, do_sample=True, top_k=20)

    with graphed(vlm.model, padding=0, capturing=PlainCapturing()):
        plain = drawn()
    with graphed(vlm.model, padding=0):
        assert torch.equal(drawn(), plain)
