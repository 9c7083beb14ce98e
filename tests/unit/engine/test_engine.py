"""The engine's rules, with replays in plain Python: keys, eviction, padding, fall-backs, and nothing left behind."""

import gc
from weakref import ref

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList, StaticCache, StoppingCriteria, StoppingCriteriaList
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask

from chronostat.engine import PlainCapturing, graphed, why_eager
from chronostat.engine.causal import causal_masks_left_out
from chronostat.engine.inputs import padded_length
from chronostat.engine.replaying import CannotCapture, PlainReplay
from chronostat.errors import ConfigError, ExecutionError, ModelError
from chronostat.knobs.registry import applied
from chronostat.measure.clock import FakeClock
from chronostat.measure.generate import measure_generate
from chronostat.measure.replays import seen_in_replays
from chronostat.records import Setting
from stand_ins.capturing import Blind
from stand_ins.observing import Snapshot
from zoo.build import build

OPTIONS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
BLOCKS = "model.language_model.layers"


@pytest.fixture(scope="module")
def model():
    """A small causal model; its prompts here are text, of any length."""
    zoo = build("llava")
    zoo.model.generate(**zoo.batch, **OPTIONS)  # the library sets hooks of its own at the first call
    return zoo.model


def prompt(length, seed=0):
    ids = torch.randint(5, 90, (1, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answer(model, length=60, seed=0, **options):
    return model.generate(**prompt(length, seed), **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("tokens", "share", "expected"), [(1, 0.05, 1), (20, 0.05, 20), (39, 0.05, 39), (41, 0.05, 42)]
)
def test_buckets_by_hand(tokens, share, expected):
    # up to 40 a step of 5 % is one token; from 40 on int(40 * 0.05) = 2
    assert padded_length(tokens, share) == expected


def test_a_bucket_holds_its_prompt_and_pads_at_most_the_share():
    for tokens in range(1, 3000):
        assert tokens <= padded_length(tokens, 0.05) <= tokens * 1.05
        assert padded_length(tokens, 0) == tokens


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "instructblip", "molmo2", "mistral4", "video_llava"])
def test_answers_are_those_of_an_eager_call(name):
    zoo = build(name)
    arguments = {**zoo.batch, **zoo.options, **OPTIONS}
    expected = zoo.model.generate(**arguments)
    with graphed(zoo.model) as engine:
        for captured in (2, 0):
            assert torch.equal(zoo.model.generate(**arguments), expected)
            ran = engine.last
            assert (ran.way, ran.prefill, ran.decode, ran.reason) == ("graph", "graph", "graph", None)
            assert ran.captured == captured


def test_prompts_of_one_bucket_share_a_graph_and_padding_is_recorded(model):
    expected = {length: answer(model, length) for length in (83, 84, 85, 60)}
    with graphed(model, padding=0.05) as engine:
        seen = []
        for length, tokens in expected.items():
            assert torch.equal(answer(model, length), tokens)
            seen.append((engine.last.prompt_tokens, engine.last.padded_tokens, engine.last.captured))
        # 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 63, 66, 69, 72, 75, 78, 81, 85
        assert seen == [(83, 2, 2), (84, 1, 0), (85, 0, 0), (60, 0, 1)]
        assert engine.last.room_tokens == 128  # 60 + 4 tokens, padded to 66, in steps of 64
        assert [program.step for program in engine.kept] == ["prefill", "prefill", "decode"]


def test_earlier_padding_does_not_come_back(model):
    class Scores(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores.clone())
            return scores

    with graphed(model, padding=0.05):
        runs = []
        for before in (85, 84):
            answer(model, before, seed=before)
            seen = []
            answer(model, 82, logits_processor=LogitsProcessorList([Scores()]))
            runs.append(torch.stack(seen))
    assert torch.equal(*runs)


def test_the_graph_used_longest_ago_leaves(model):
    with graphed(model, padding=0, most_graphs=4) as engine:
        lengths = ((39, 2, 0), (40, 1, 0), (41, 1, 0), (42, 1, 1), (41, 0, 0), (39, 1, 1))
        for length, captured, evicted in lengths:
            tokens = answer(model, length)
            assert (engine.last.captured, engine.last.evicted) == (captured, evicted), length
            with engine.paused():
                assert torch.equal(answer(model, length), tokens)
                assert engine.last.reason == "the engine is paused"
        assert len(engine.kept) == 4


def change_weight(module):
    module.o_proj.weight = nn.Parameter(module.o_proj.weight.detach() * 3, requires_grad=False)


def change_number(module):
    module.scaling *= 2


def change_forward(module):
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs)


def change_module(module):
    module.o_proj = nn.Sequential(module.o_proj)


def change_config(module):
    module.config.attention_dropout = 0.25


@pytest.mark.parametrize("change", [change_weight, change_number, change_forward, change_module, change_config])
def test_another_state_is_captured_anew(change):
    model = build("llava").model
    with graphed(model) as engine:
        answer(model)
        change(model.get_submodule(f"{BLOCKS}.1.self_attn"))
        after = answer(model)
        assert engine.last.captured == 2
        answer(model)
        assert engine.last.captured == 0
        with engine.paused():
            assert torch.equal(answer(model), after)


def test_a_forward_that_is_kept_on_its_block_is_one_state():
    """From transformers 5.23 on the forward of a block is a wrapper that its own closure holds."""
    model = build("llava").model
    block = model.get_submodule(f"{BLOCKS}.1")
    block.forward = block.forward  # as what wraps a model keeps the method that it stands before
    with graphed(model) as engine:
        first, second = answer(model), answer(model)
        assert (engine.last.way, engine.last.captured) == ("graph", 0)
        with engine.paused():
            assert torch.equal(answer(model), first)
    assert torch.equal(first, second)


def test_a_weight_changed_in_place_is_read_where_it_lies(model):
    with graphed(model) as engine, torch.no_grad():
        answer(model)
        weight = model.get_submodule(f"{BLOCKS}.1.self_attn.o_proj").weight
        before = weight.clone()
        weight.mul_(-5)
        changed = answer(model)
        assert engine.last.captured == 0
        with engine.paused():
            assert torch.equal(answer(model), changed)
        weight.copy_(before)


def test_switches_of_torch_belong_to_the_state(model):
    before = torch.get_float32_matmul_precision()
    with graphed(model) as engine:
        answer(model)
        torch.set_float32_matmul_precision("medium" if before != "medium" else "high")
        answer(model)
        torch.set_float32_matmul_precision(before)
        assert engine.last.captured == 2


def test_a_setting_that_comes_back_finds_its_graphs(bundled, demo_batch):
    settings = ("block_skip=0,7", "moe_topk=1", "block_skip=2,3 moe_topk=2")
    model, options = bundled.model, {"max_new_tokens": 3, "min_new_tokens": 3}
    with graphed(model, padding=0) as engine:
        for captured in (2, 0):
            for text in settings:
                with applied(Setting.parse(text), model, bundled.processor):
                    tokens = model.generate(**demo_batch, **options)
                    assert (engine.last.way, engine.last.captured) == ("graph", captured)
                    if captured == 0:
                        with engine.paused():
                            assert torch.equal(model.generate(**demo_batch, **options), tokens)


def test_a_block_that_is_left_out_writes_nothing(bundled, demo_batch):
    with graphed(bundled.model) as engine:
        with applied(Setting(block_skip=(0, 5)), bundled.model, bundled.processor):
            bundled.model.generate(**demo_batch, max_new_tokens=2, min_new_tokens=2)
        room = engine.kept[-1].room
        assert [index for index, keys in enumerate(room.keys) if keys is None] == [0, 5]


def test_a_request_longer_than_its_cache_is_stopped_before_it_writes_beyond(model, monkeypatch):
    monkeypatch.setattr("chronostat.engine.engine._ROOM_STEP", 8)
    monkeypatch.setattr("chronostat.engine.engine.padded_length", lambda tokens, share: 40)
    with graphed(model):
        answer(model, 36)  # 36 + 4 tokens
        message = "a request of 41 tokens in a cache for 40: this model adds tokens to its prompt that generate"
        with pytest.raises(ExecutionError, match=message):
            answer(model, 36, max_new_tokens=6)


FALL_BACKS = {
    "num_beams": (2, "beam_search does not add one token to one sequence at a time"),
    "prompt_lookup_num_tokens": (2, "assisted_generation does not add one token"),
    "return_dict_in_generate": (True, "return_dict_in_generate hands out the cache"),
    "cache_implementation": ("static", "a StaticCache was asked for"),
    "use_cache": (False, "no cache is used"),
    "prefill_chunk_size": (16, "prefill_chunk_size=16"),
}


@pytest.mark.parametrize("name", FALL_BACKS)
def test_what_cannot_be_replayed_runs_eagerly_and_says_why(model, name):
    value, reason = FALL_BACKS[name]
    expected = answer(model, **{name: value})
    with graphed(model) as engine:
        found = answer(model, **{name: value})
        assert engine.last.way == "eager"
        assert engine.last.reason.startswith(reason)
        assert not engine.kept
    assert torch.equal(getattr(found, "sequences", found), getattr(expected, "sequences", expected))


def test_requests_that_cannot_be_replayed(model):
    twice = {key: value.repeat(2, 1) for key, value in prompt(30).items()}
    padded = prompt(30)
    padded["attention_mask"][0, :4] = 0
    own = {**prompt(30), "past_key_values": StaticCache(config=model.config.get_text_config(), max_cache_len=64)}
    with graphed(model) as engine:
        for batch, reason in (
            (twice, "a batch of 2 sequences"),
            (padded, "attention_mask masks some of the prompt"),
            (own, "past_key_values is your own cache"),
        ):
            model.generate(**batch, **OPTIONS, disable_compile=True)
            assert (engine.last.way, engine.last.reason) == ("eager", reason)


def test_a_hook_that_a_replay_would_skip_fires(model):
    calls = []
    block = model.get_submodule(f"{BLOCKS}.1")
    with graphed(model) as engine:
        answer(model)
        handle = block.register_forward_hook(lambda *_: calls.append(1))
        answer(model)
        assert engine.last.reason == "a forward hook on layers.1 would not run"
        assert len(calls) == 5
        handle.remove()
        answer(model)
        assert engine.last.way == "graph"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t5gemma2", "an encoder-decoder keeps two caches"),
        ("mllama", "some of its blocks attend to the image"),
        ("git", "takes no inputs_embeds and past_key_values"),
        ("aya_vision", "layers of its cache are a DynamicSlidingWindowLayer"),
    ],
)
def test_a_model_that_cannot_be_replayed_is_refused(name, reason):
    model = build(name).model
    assert reason in why_eager(model)
    with (
        pytest.raises(ModelError, match=f"cannot run by the engine 'graph': .*{reason}.*; use 'eager'"),
        graphed(model),
    ):
        pass


def test_bad_arguments(model):
    message = "most_graphs = 3: an answer about an image needs 4, give at least as many"  # vision, projector, and two
    with pytest.raises(ConfigError, match=message), graphed(model, most_graphs=3):
        pass
    with (
        pytest.raises(ConfigError, match=r"padding = 1\.5: give a share of the prompt from 0 to 1"),
        graphed(model, padding=1.5),
    ):
        pass
    again = pytest.raises(ModelError, match="runs by the engine 'graph' already; leave one of the two out")
    with graphed(model), again, graphed(model):
        pass


def test_nothing_is_left_on_the_model_or_in_memory(model):
    before = Snapshot(model)
    gc.disable()  # what is left shall not wait for it
    try:
        with graphed(model) as engine:
            answer(model)
            held = [ref(thing) for program in engine.kept for thing in (program, program.room, program.replay)]
            assert len(held) == 6
        assert [alive() for alive in held] == [None] * 6
    finally:
        gc.enable()
    before.assert_equals(model)
    with pytest.raises(RuntimeError, match="out of ideas"), graphed(model):
        raise RuntimeError("out of ideas")
    before.assert_equals(model)


class Refusing(PlainCapturing):
    """Captures nothing."""

    def __init__(self):
        self.asked = 0

    def capture(self, work, beside, marks):
        self.asked += 1
        raise CannotCapture("too little memory for one more graph")


def test_what_could_not_be_captured_runs_eagerly_and_is_not_tried_again(model):
    expected, capturing = answer(model), Refusing()
    with graphed(model, capturing=capturing) as engine:
        for _ in range(2):
            assert torch.equal(answer(model), expected)
            assert engine.last.reason == "too little memory for one more graph"
            assert (engine.last.prefill, engine.last.decode) == ("eager", "eager")
    assert capturing.asked == 2  # the prefill, and a decode step


class Wrong(PlainCapturing):
    """Its replays give something else."""

    def capture(self, work, beside, marks):
        return PlainReplay(lambda: work() * 1.5)


def test_a_replay_that_differs_from_the_model_is_refused(model):
    expected = answer(model)
    with graphed(model, capturing=Wrong()) as engine:
        assert torch.equal(answer(model), expected)
        assert engine.last.reason.startswith(
            "a replay gave other hidden states than the model itself (relative difference 0.5"
        )
        assert not engine.kept


def test_a_call_inside_a_call_gets_a_cache_of_its_own(model):
    expected = answer(model)
    inner = []

    class Nested(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            if not inner:
                inner.append(answer(model))
                inner.append(engine.last.reason)
            return torch.zeros(1, dtype=torch.bool)

    with graphed(model) as engine:
        outer = answer(model, stopping_criteria=StoppingCriteriaList([Nested()]))
    assert torch.equal(outer, expected)
    assert torch.equal(inner[0], expected)
    assert inner[1] == "the cache of another call is still in use"


def test_stages_of_a_replay_come_from_its_marks(model):
    clock = FakeClock()
    with graphed(model, capturing=Blind(model, clock, 7.0)) as engine:
        first, second = (measure_generate(model, prompt(60), max_new_tokens=3, clock=clock) for _ in range(2))
        assert engine.last.way == "graph"
    assert (first.replayed, second.replayed) == (True, True)
    assert "the engine captured 1 graph(s) meanwhile" in first.disturbed
    assert "the engine captured" not in (second.disturbed or "")
    assert second.timing.source == "measured"
    assert second.timing.llm_prefill_ms == pytest.approx(7.0)
    assert second.timing.decode_ms == pytest.approx(14.0)  # two steps
    plain = measure_generate(model, prompt(60), max_new_tokens=3)
    assert plain.replayed is False
    assert plain.output_ids == second.output_ids


def test_hooks_that_are_told_of_replays_do_not_keep_them_away(model):
    block = model.get_submodule(f"{BLOCKS}.0")
    calls = []

    @seen_in_replays
    def hook(*_):
        calls.append(1)

    handle = block.register_forward_hook(hook)
    with graphed(model) as engine:
        answer(model)
        assert engine.last.way == "graph"
    handle.remove()
    assert len(calls) == 5  # once for each forward of the answer, though those that capture run several times


def test_a_capture_takes_the_causal_way(model, monkeypatch):
    config = model.config.get_text_config()
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)  # as while a stream is captured
    arguments = {"config": config, "inputs_embeds": torch.zeros(1, 6, 8), "past_key_values": None}
    before = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    some = torch.ones(1, 6)
    some[0, 0] = 0
    with causal_masks_left_out():
        assert create_causal_mask(**arguments, attention_mask=None) is None
        assert create_causal_mask(**arguments, attention_mask=some).shape == (1, 1, 6, 6)
        anything = {"or_mask_function": lambda *_: torch.tensor(True)}
        assert create_causal_mask(**arguments, attention_mask=None, **anything).all()
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is before
    assert "sdpa" not in ALL_MASK_ATTENTION_FUNCTIONS._local_mapping
