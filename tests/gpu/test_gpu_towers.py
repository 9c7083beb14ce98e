"""Vision towers and projectors captured on a CUDA device: bit for bit what runs eagerly, with hooks still told."""

import gc
from weakref import ref

import pytest
import torch
from benchmarks.kit.models import build
from torch import nn

from chronostat.engine import graphed
from chronostat.knobs.registry import applied
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of
from chronostat.records import Setting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
MODELS = {"bundled": (1, 4), "toy-llava": (1, 3), "toy-paligemma": (1, 1)}  # with two numbers of tiles
LENGTH = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    return build(request.param, DEVICE, torch.bfloat16)


def batches_of(built):
    """Two shapes, two images of each."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    for tiles in MODELS[built.name]:
        for _ in range(2):
            batch = built.batch(tiles)
            pixels = torch.randn(batch["pixel_values"].shape, device=DEVICE, generator=generator)
            yield {**batch, "pixel_values": pixels.to(batch["pixel_values"].dtype)}


def features_of(built, batch):
    """What the projectors return inside of one ``generate()``, and the answer."""
    seen = []
    handles = [
        built.model.get_submodule(path).register_forward_hook(lambda _, args, output: seen.append(output.clone()))
        for path in anatomy_of(built.model).projector
    ]
    answer = built.model.generate(**batch, **LENGTH)
    for handle in handles:
        handle.remove()
    return torch.cat([features.flatten() for features in seen]), answer


def test_features_are_those_of_an_eager_call_bit_for_bit(built):
    batches = list(batches_of(built))
    eager = [features_of(built, batch)[0] for batch in batches]
    assert not torch.equal(eager[0], eager[1])
    with graphed(built.model, padding=0) as engine:
        for captures in (True, False):
            for batch, expected in zip(batches, eager, strict=True):
                features, _ = features_of(built, batch)
                assert torch.equal(features, expected)
                assert set(engine.last.encoded.eager.values()) == {None}, engine.last.encoded
                assert (engine.last.way, engine.last.reason) == ("graph", None)
            assert captures or engine.last.encoded.captured == 0


def test_a_method_that_listens_inside_the_tower_keeps_what_it_keeps_eagerly(built):
    batches = list(batches_of(built))[:2]
    with applied(Setting.parse("image_keep=attention:4"), built.model, built.processor):
        eager = [features_of(built, batch)[0] for batch in batches]
        answers = []
        with graphed(built.model, padding=0) as engine:
            for _ in range(2):
                for batch, expected in zip(batches, eager, strict=True):
                    features, answer = features_of(built, batch)
                    assert torch.equal(features, expected)
                    answers.append(answer)
                    assert set(engine.last.encoded.eager.values()) == {None}, engine.last.encoded
            with engine.paused():
                first = [built.model.generate(**batch, **LENGTH) for batch in batches]
    assert torch.equal(answers[0], answers[2])
    for one, other in zip(answers, first, strict=False):
        assert one[0, -3] == other[0, -3]  # the first token: the prefill, whose kept tokens are the same


def test_another_setting_of_the_tower_is_followed(built):
    batch = next(batches_of(built))
    tower = built.model.get_submodule(anatomy_of(built.model).vision[0])
    linear = next(module for module in tower.modules() if isinstance(module, nn.Linear))
    with graphed(built.model, padding=0) as engine:
        before, _ = features_of(built, batch)
        old = linear.weight
        linear.weight = nn.Parameter(old.detach() * 4, requires_grad=False)
        after, _ = features_of(built, batch)
        with engine.paused():
            expected, _ = features_of(built, batch)
        linear.weight = old
        again, _ = features_of(built, batch)
        assert engine.last.encoded.captured == 0
    assert torch.equal(after, expected)
    assert torch.equal(again, before)
    assert not torch.equal(after, before)


def test_stages_are_measured_around_a_replay(built):
    batch = next(batches_of(built))
    with graphed(built.model) as engine:
        measured = [measure_generate(built.model, batch, max_new_tokens=3) for _ in range(3)][-1]
        assert set(engine.last.encoded.eager.values()) == {None}
    timing = measured.timing
    assert (timing.source, timing.unseen) == ("measured", None)
    assert 0 < timing.vision_ms < timing.prefill_ms
    parts = timing.vision_ms + timing.projector_ms + timing.llm_prefill_ms + timing.prefill_rest_ms
    assert parts == pytest.approx(timing.prefill_ms, abs=0.05)


def test_nothing_of_the_graphs_is_left(built):
    batch = next(batches_of(built))

    def allocated():
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    with graphed(built.model):
        built.model.generate(**batch, **LENGTH)  # the stream that captures, and what cuBLAS keeps for it, stay
    before = allocated()
    with graphed(built.model) as engine:
        built.model.generate(**batch, **LENGTH)
        held = [ref(thing) for program in engine.kept_parts for thing in (program, program.replay)]
        assert len(held) == 4
    del engine
    assert allocated() == before
    assert [alive() for alive in held] == [None] * 4
