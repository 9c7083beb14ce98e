"""Vision towers and projectors in replays: the same answers, whose states they are of, and who still hears of them."""

import gc
from concurrent.futures import ThreadPoolExecutor
from weakref import ref

import pytest
import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from chronostat.engine import PlainCapturing, graphed
from chronostat.engine.replaying import CannotCapture, PlainReplay
from chronostat.knobs.registry import applied
from chronostat.measure.clock import FakeClock
from chronostat.measure.generate import measure_generate
from chronostat.models.calls import whole_call
from chronostat.records import Setting
from stand_ins.capturing import Blind
from stand_ins.observing import Snapshot
from zoo.build import build

OPTIONS = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
TOWER, PROJECTOR = "model.vision_tower", "model.multi_modal_projector"
REPLAYED = {TOWER: None, PROJECTOR: None}


@pytest.fixture(scope="module")
def zoo():
    found = build("llava")
    found.model.generate(**found.batch, **OPTIONS)  # the library sets hooks of its own at the first call
    return found


@pytest.fixture
def blind(zoo):
    return Blind(zoo.model, FakeClock())


def answer(zoo, **changed):
    return zoo.model.generate(**{**zoo.batch, **changed}, **OPTIONS)


def features_of(zoo, **changed):
    """What the projector returns inside of one ``generate()``."""
    seen = []
    handle = zoo.model.get_submodule(PROJECTOR).register_forward_hook(lambda _, args, output: seen.append(output))
    answer(zoo, **changed)
    handle.remove()
    return seen[0]


def another_image(zoo, seed):
    pixels = zoo.batch["pixel_values"]
    return torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))


def test_features_are_those_of_an_eager_call_whatever_the_image(zoo, blind):
    images = [another_image(zoo, seed) for seed in range(3)]
    expected = [features_of(zoo, pixel_values=image) for image in images]
    with graphed(zoo.model, capturing=blind) as engine:
        seen = []
        for image, captured in zip(images, (2, 0, 0), strict=True):
            seen.append(features_of(zoo, pixel_values=image))
            assert engine.last.way == "graph"
            assert (engine.last.encoded.eager, engine.last.encoded.captured) == (REPLAYED, captured)
        assert [program.path for program in engine.kept_parts] == [TOWER, PROJECTOR]
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))  # each in memory of its own


def test_text_alone_leaves_them_out(zoo):
    ids = torch.tensor([[1, 5, 6, 30, 31]])
    with graphed(zoo.model) as engine:
        zoo.model.generate(input_ids=ids, **OPTIONS)
        assert (engine.last.encoded.eager, engine.kept_parts) == ({}, ())


def test_another_shape_dtype_or_argument_is_another_graph(zoo, blind):
    tower = zoo.model.get_submodule(TOWER)

    def captured(*args, **kwargs):
        """How many graphs a call of the tower makes inside of a ``generate()``."""

        class Calls(StoppingCriteria):
            def __call__(self, input_ids, scores, **_):
                before = len(engine.kept_parts)
                seen.append((tower(*args, **kwargs).last_hidden_state, len(engine.kept_parts) - before))
                return torch.zeros(1, dtype=torch.bool)

        seen = []
        zoo.model.generate(
            **zoo.batch, **{**OPTIONS, "max_new_tokens": 1, "min_new_tokens": 1}, stopping_criteria=[Calls()]
        )
        (found, made) = seen[0]
        assert torch.equal(found, tower(*args, **kwargs).last_hidden_state)
        return made

    pixels = zoo.batch["pixel_values"]
    with graphed(zoo.model, capturing=blind) as engine:
        answer(zoo)
        for expected in (1, 0):
            assert captured(pixels) == expected
            assert captured(torch.cat([pixels, pixels])) == expected
            assert captured(pixels.to(memory_format=torch.channels_last)) == expected
            assert captured(pixels.double()) == expected
            assert captured(pixels, output_hidden_states=True) == expected
            assert captured(pixels, output_hidden_states=1) == expected  # equal, and another meaning


def change_weight(part):
    part.weight = nn.Parameter(part.weight.detach() * 3, requires_grad=False)


def change_forward(part):
    original = part.forward
    part.forward = lambda hidden: original(hidden) * 2


@pytest.mark.parametrize("change", [change_weight, change_forward])
def test_another_state_is_captured_anew(change):
    zoo = build("llava")
    answer(zoo)
    with graphed(zoo.model, capturing=Blind(zoo.model, FakeClock())) as engine:
        before = features_of(zoo)
        change(next(m for m in zoo.model.get_submodule(TOWER).modules() if isinstance(m, nn.Linear)))
        after = features_of(zoo)
        assert engine.last.encoded.captured == 1  # the projector is as it was
        with engine.paused():
            assert torch.equal(features_of(zoo), after)
    assert not torch.equal(before, after)


def test_a_weight_changed_in_place_is_read_where_it_lies(zoo, blind):
    weight = next(zoo.model.get_submodule(TOWER).parameters())
    old = weight.detach().clone()
    with graphed(zoo.model, capturing=blind) as engine, torch.no_grad():
        before = features_of(zoo)
        weight.mul_(2)
        after = features_of(zoo)
        assert engine.last.encoded.captured == 0
        weight.copy_(old)
    assert not torch.equal(before, after)


def test_an_answer_inside_an_answer_is_of_the_state_that_it_finds(zoo, blind):
    inner = zoo.model.get_submodule(PROJECTOR).linear_1
    old, captured = inner.weight, []
    others = [nn.Parameter(old.detach() * 3, requires_grad=False) for _ in range(2)]

    class Nested(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            if not captured:
                inner.weight = others.pop()
                answer(zoo)
                captured.append(engine.last.encoded.captured)
                inner.weight = old
            return torch.zeros(1, dtype=torch.bool)

    def outer():
        captured.clear()
        zoo.model.generate(**zoo.batch, **OPTIONS, stopping_criteria=StoppingCriteriaList([Nested()]))
        return captured

    with graphed(zoo.model, capturing=blind) as engine:
        answer(zoo)
        assert outer() == [1]
        with whole_call(zoo.model, zoo.batch):  # as a knob that does some of the work before
            assert outer() == [1]


def test_a_hook_that_a_replay_would_skip_fires(zoo, blind):
    calls = []
    block = zoo.model.get_submodule(TOWER).encoder.layers[1]
    with graphed(zoo.model, capturing=blind) as engine:
        answer(zoo)
        handle = block.register_forward_hook(lambda *_: calls.append(1))
        answer(zoo)
        assert engine.last.encoded.eager == {
            TOWER: "has a forward hook on encoder.layers.1, which would not run",
            PROJECTOR: None,
        }
        assert (engine.last.way, engine.last.reason) == ("graph", None)  # a tower alone makes no call eager
        handle.remove()
        answer(zoo)
        assert engine.last.encoded.eager == REPLAYED
    assert len(calls) == 1


def test_stages_are_measured_around_a_replay(zoo):
    clock = FakeClock()
    with graphed(zoo.model, capturing=Blind(zoo.model, clock, 5.0)) as engine:
        first, second = (measure_generate(zoo.model, zoo.batch, max_new_tokens=3, clock=clock) for _ in range(2))
        assert engine.last.encoded.eager == REPLAYED
    assert "the engine captured 1 graph(s) meanwhile" in first.disturbed
    assert "the engine captured" not in (second.disturbed or "")
    timing = second.timing
    assert (timing.source, timing.unseen) == ("measured", None)
    assert (timing.vision_ms, timing.projector_ms, timing.llm_prefill_ms) == pytest.approx((5.0, 5.0, 5.0))


def test_a_capture_of_a_tower_alone_makes_its_call_disturbed(zoo):
    clock = FakeClock()
    with graphed(zoo.model, capturing=Blind(zoo.model, clock)) as engine:
        answer(zoo)
        zoo.model.get_submodule(PROJECTOR).anything = 1
        measured = measure_generate(zoo.model, zoo.batch, max_new_tokens=3, clock=clock)
        del zoo.model.get_submodule(PROJECTOR).anything
        assert (engine.last.captured, engine.last.encoded.captured) == (0, 1)
    assert "the engine captured 1 graph(s) meanwhile" in measured.disturbed


def test_a_replay_past_the_hooks_of_its_tower_is_noticed(zoo, monkeypatch):
    tower, clock = zoo.model.get_submodule(TOWER), FakeClock()

    def twice(*args, **kwargs):
        tower.forward(*args, **kwargs)
        return nn.Module._call_impl(tower, *args, **kwargs)

    with graphed(zoo.model, capturing=Blind(zoo.model, clock)) as engine:
        answer(zoo)
        monkeypatch.setattr(tower, "_call_impl", twice)
        timing = measure_generate(zoo.model, zoo.batch, max_new_tokens=3, clock=clock).timing
        assert engine.last.encoded.eager == REPLAYED
    assert (timing.source, timing.unseen) == ("total_only", "not seen: vision")


def test_what_a_knob_encodes_before_the_call_is_replayed(zoo, blind):
    with graphed(zoo.model, capturing=blind) as engine:
        for captured in (2, 0):
            with applied(Setting(image_keep="norm:2"), zoo.model, None):
                found = answer(zoo)
                assert engine.last.encoded.eager == REPLAYED
                assert engine.last.encoded.captured == captured
                with engine.paused():
                    assert torch.equal(answer(zoo), found)


def test_a_knob_that_listens_inside_the_tower_hears_it(zoo, blind):
    setting, images = Setting(image_keep="attention:2"), [another_image(zoo, seed) for seed in range(4)]
    with applied(setting, zoo.model, None):
        expected = [answer(zoo, pixel_values=image) for image in images]
    kept = {tuple(tokens.flatten().tolist()) for tokens in expected}
    assert len(kept) > 1  # it depends on the image
    with graphed(zoo.model, capturing=blind) as engine:
        answer(zoo)
        for image, tokens, captured in zip(images, expected, (1, 0, 0, 0), strict=True):
            with applied(setting, zoo.model, None):
                assert torch.equal(answer(zoo, pixel_values=image), tokens)
            assert (engine.last.encoded.eager, engine.last.encoded.captured) == (REPLAYED, captured)


def test_what_was_heard_of_a_capture_that_failed_is_forgotten(zoo, monkeypatch):
    last, capturing = zoo.model.get_submodule(TOWER).encoder.layers[-1], []
    original = last.forward

    def forward(*args, **kwargs):
        if capturing:
            raise LookupError("not while it is captured")
        return original(*args, **kwargs)

    class Breaking(PlainCapturing):
        def capture(self, work, beside, marks):
            capturing.append(True)
            try:
                work()
            finally:
                capturing.clear()
            return super().capture(work, beside, marks)

    monkeypatch.setattr(last, "forward", forward)
    with applied(Setting(image_keep="attention:2"), zoo.model, None):
        expected = answer(zoo)
        with graphed(zoo.model, capturing=Breaking()) as engine:
            assert torch.equal(answer(zoo), expected)  # two pictures heard would be refused
    assert engine.last.encoded.reasons[TOWER] == ("raises LookupError while it is captured: not while it is captured")


def test_a_call_of_another_thread_runs_eagerly(zoo, blind):
    seen = []

    class Elsewhere(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            if not seen:
                with ThreadPoolExecutor(1) as pool:
                    seen.append(pool.submit(answer, zoo).result())
                seen.append(engine.last)
            return torch.zeros(1, dtype=torch.bool)

    expected = answer(zoo)
    with graphed(zoo.model, capturing=blind) as engine:
        zoo.model.generate(**zoo.batch, **OPTIONS, stopping_criteria=StoppingCriteriaList([Elsewhere()]))
    assert torch.equal(seen[0], expected)
    assert (seen[1].way, seen[1].reason, seen[1].encoded.eager) == ("eager", "another thread is in a call", {})


class Wrong(PlainCapturing):
    """Its replays give something else by a little."""

    def __init__(self):
        self.asked = 0

    def capture(self, work, beside, marks):
        self.asked += 1

        def other():
            output = work()
            if isinstance(output, list):
                output[0] = output[0] + 1e-6
            return output

        return PlainReplay(other)


def test_a_replay_that_is_not_equal_bit_for_bit_is_refused_and_not_tried_again(zoo):
    expected, capturing = features_of(zoo), Wrong()
    with graphed(zoo.model, capturing=capturing) as engine:
        for _ in range(2):
            assert torch.equal(features_of(zoo), expected)
            assert set(engine.last.encoded.eager.values()) == {"does not give the same bit for bit when it is replayed"}
    assert capturing.asked == 4  # tower, projector, prefill, decode step


class Failing(PlainCapturing):
    """Captures no part, by an error that is nobody's."""

    def __init__(self, error):
        self.error = error

    def capture(self, work, beside, marks):
        if isinstance(work(), list):
            raise self.error
        return super().capture(work, beside, marks)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CannotCapture("too little memory for one more graph"), "too little memory for one more graph"),
        (KeyError("index"), "raises KeyError while it is captured: 'index'"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(zoo, error, reason):
    expected = answer(zoo)
    with graphed(zoo.model, capturing=Failing(error)) as engine:
        assert torch.equal(answer(zoo), expected)
        assert engine.last.encoded.eager == {TOWER: reason, PROJECTOR: reason}
        assert (engine.last.way, engine.kept_parts) == ("graph", ())


def test_nothing_is_left_on_the_model_or_in_memory(zoo):
    before = Snapshot(zoo.model)
    gc.disable()  # what is left shall not wait for it
    try:
        with graphed(zoo.model) as engine:
            answer(zoo)
            held = [ref(thing) for program in engine.kept_parts for thing in (program, program.replay)]
            assert len(held) == 4
        assert [alive() for alive in held] == [None] * 4
    finally:
        gc.enable()
    before.assert_equals(zoo.model)


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("qwen3_vl_moe", "model.visual", "model.visual.merger lies inside, and has a time of its own"),
        ("chameleon", "model.vqmodel", "it lies inside the module that holds the decoder blocks"),
    ],
)
def test_a_part_that_is_no_piece_says_why(name, part, reason):
    found = build(name)
    with graphed(found.model) as engine:
        found.model.generate(**found.batch, **found.options, **OPTIONS)
    assert engine.last.encoded.eager[part] == reason
