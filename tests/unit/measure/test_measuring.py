"""``measuring``: the user's own ``generate()``, measured; and the wrong uses of measuring, each with a clear error."""

import functools
import inspect
import threading

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from chronostat import measuring
from chronostat.errors import ConfigError, DataError, GenerationTimeout, MeasurementError, ModelError
from chronostat.execution.execute import BatchRequest, execute
from chronostat.measure.clock import FakeClock
from chronostat.measure.generate import measure_generate
from chronostat.records import Setting
from stand_ins.molmo_like import MolmoLike, molmo_batch, molmo_like
from stand_ins.observing import Snapshot, delay

NEW_TOKENS = 4


class StopAfter(StoppingCriteria):
    def __init__(self, tokens):
        self.left = tokens

    def __call__(self, input_ids, scores, **_):
        self.left -= 1
        return torch.full(input_ids.shape[:1], self.left <= 0, dtype=torch.bool)


WAYS = {
    "by name": {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS},
    "by configuration": {"generation_config": GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=0)},
    "sampling": {"max_new_tokens": NEW_TOKENS, "do_sample": True, "top_k": 5},
    "output object": {"max_new_tokens": NEW_TOKENS, "return_dict_in_generate": True, "output_scores": True},
    "static cache": {"max_new_tokens": NEW_TOKENS, "cache_implementation": "static"},
}


def ids(output):
    return getattr(output, "sequences", output)


@pytest.mark.parametrize("way", WAYS)
def test_the_output_is_that_of_a_plain_call_and_the_stages_are_seen(bundled, demo_batch, way):
    torch.manual_seed(0)
    plain = bundled.model.generate(**demo_batch, **WAYS[way])
    before = Snapshot(bundled.model)
    torch.manual_seed(0)
    with measuring(bundled.model) as measured:
        output = bundled.model.generate(**demo_batch, **WAYS[way])
    before.assert_equals(bundled.model)
    assert type(output) is type(plain)
    assert torch.equal(ids(output), ids(plain))
    timing = measured.timing
    assert (timing.source, timing.unseen) == ("measured", None)
    assert timing.new_tokens == len(measured.output_ids) == ids(plain).shape[1] - demo_batch["input_ids"].shape[1]
    assert torch.equal(measured.sequences, ids(output))
    assert measured.compiled is False


def test_beams_of_the_call_itself_are_noticed(bundled, demo_batch):
    with measuring(bundled.model) as measured:
        bundled.model.generate(**demo_batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, num_beams=2)
    assert (measured.timing.source, measured.timing.decode_ms_per_token) == ("measured", None)


def test_an_assistant_of_the_call_itself_is_noticed(bundled, demo_batch):
    with measuring(bundled.model) as measured:
        bundled.model.generate(**demo_batch, max_new_tokens=NEW_TOKENS, prompt_lookup_num_tokens=2)
    assert measured.timing.decode_ms_per_token is None


def test_one_path_for_both_ways_of_measuring(bundled, demo_batch):
    clock = FakeClock()
    with measuring(bundled.model, clock=clock) as measured:
        bundled.model.generate(**demo_batch, max_new_tokens=NEW_TOKENS)
    assert (
        measured.result.timing
        == measure_generate(bundled.model, demo_batch, max_new_tokens=NEW_TOKENS, clock=clock).timing
    )


@pytest.mark.parametrize("container", [list, tuple, StoppingCriteriaList])
def test_the_users_own_criteria_are_asked_and_left_as_they_were(bundled, demo_batch, container):
    own = container([StopAfter(2), MaxLengthCriteria(10_000)])
    with measuring(bundled.model) as measured:
        bundled.model.generate(
            **demo_batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, stopping_criteria=own
        )
    assert measured.timing.new_tokens == 2
    assert [type(each) for each in own] == [StopAfter, MaxLengthCriteria]


def test_criteria_by_position(bundled, demo_batch):
    batch = dict(demo_batch)
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0)
    with measuring(bundled.model) as measured:
        bundled.model.generate(batch.pop("input_ids"), config, None, StoppingCriteriaList([StopAfter(3)]), **batch)
    assert (measured.timing.source, measured.timing.new_tokens) == ("measured", 3)


def test_the_signature_stays_readable(bundled, demo_batch):
    plain = inspect.signature(bundled.model.generate)
    with measuring(bundled.model):
        assert inspect.signature(bundled.model.generate) == plain
        bundled.model.generate(**demo_batch, max_new_tokens=1)


def test_embeddings_instead_of_ids(bundled, demo_batch):
    embedded = bundled.model.get_input_embeddings()(demo_batch["input_ids"])
    with torch.no_grad(), measuring(bundled.model) as measured:
        output = bundled.model.generate(inputs_embeds=embedded, max_new_tokens=2, min_new_tokens=2)
    assert measured.output_ids == tuple(output[0].tolist())
    assert (measured.timing.source, measured.timing.new_tokens, measured.timing.vision_ms) == ("measured", 2, None)


@pytest.mark.slow
def test_a_streamer_in_a_thread(bundled, demo_batch):
    streamer = TextIteratorStreamer(bundled.processor.tokenizer, skip_prompt=True)
    arguments = {**demo_batch, "max_new_tokens": NEW_TOKENS, "streamer": streamer}
    with measuring(bundled.model) as measured:
        worker = threading.Thread(target=bundled.model.generate, kwargs=arguments)
        worker.start()
        said = "".join(streamer)
        worker.join()
    assert said
    assert measured.timing.source == "measured"


def test_after_a_call_that_raised_it_is_said_that_nothing_was_measured(bundled, demo_batch):
    with measuring(bundled.model) as measured, pytest.raises(ValueError, match="max_new_tokens"):
        bundled.model.generate(**demo_batch, max_new_tokens=0)
    with pytest.raises(
        MeasurementError, match=r"inside the with raised ValueError; call it again inside another"
    ) as said:
        _ = measured.timing
    assert isinstance(said.value.__cause__, ValueError)


def test_reading_before_the_call_has_ended_is_refused(bundled, demo_batch):
    with measuring(bundled.model) as measured:
        with pytest.raises(MeasurementError, match="nothing has been measured yet"):
            _ = measured.timing
        bundled.model.generate(**demo_batch, max_new_tokens=1)
    assert measured.timing.total_ms > 0


def test_no_call_is_refused():
    model = molmo_like()
    before = Snapshot(model)
    with pytest.raises(MeasurementError, match="no generate\\(\\) was called inside"), measuring(model):
        pass
    before.assert_equals(model)


def test_a_second_call_is_refused():
    model = molmo_like()
    before = Snapshot(model)
    with measuring(model) as measured:
        model.generate(**molmo_batch(), max_new_tokens=1)
        with pytest.raises(MeasurementError, match="a second generate\\(\\) inside one with"):
            model.generate(**molmo_batch(), max_new_tokens=2)
    assert measured.timing.new_tokens == 1
    before.assert_equals(model)


def test_a_call_that_outlives_the_with_is_refused(monkeypatch):
    model, go_on = molmo_like(), threading.Event()
    head, started = model.lm_head.forward, threading.Event()

    def waiting(hidden):
        started.set()
        assert go_on.wait(600)
        return head(hidden)

    monkeypatch.setattr(model.lm_head, "forward", waiting)
    before = Snapshot(model)
    worker = threading.Thread(target=lambda: model.generate(**molmo_batch(), max_new_tokens=1))

    def measure_without_waiting():
        with measuring(model):
            worker.start()
            assert started.wait(600)

    with pytest.raises(MeasurementError, match="still running in another thread when the with ended"):
        measure_without_waiting()
    go_on.set()
    worker.join()
    before.assert_equals(model)


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_what_the_users_call_raises_passes_through(monkeypatch, error):
    model = molmo_like()
    before = Snapshot(model)

    def fail(_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(model.lm_head, "forward", fail)
        with pytest.raises(type(error)), measuring(model):
            model.generate(**molmo_batch(), max_new_tokens=1)
    before.assert_equals(model)


def test_what_the_user_raises_beside_the_call_passes_through():
    with pytest.raises(ZeroDivisionError), measuring(molmo_like()):
        _ = 1 / 0


def test_arguments_that_generate_does_not_take_raise_what_it_raises():
    model = molmo_like()
    with pytest.raises(TypeError, match="multiple values for argument"), measuring(model):
        model.generate(molmo_batch()["input_ids"], inputs=1)


class OldEntrance(MolmoLike):
    """Answers a whole batch, as the first Molmo generation does."""

    def generate_from_batch(self, batch, generation_config=None, **kwargs):
        return self.generate(**batch, generation_config=generation_config, **kwargs)


def test_the_entrance_of_the_first_molmo_generation():
    model = molmo_like(OldEntrance)
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=0)
    plain = model.generate_from_batch(molmo_batch(), config)
    with measuring(model) as measured:
        output = model.generate_from_batch(molmo_batch(), config)
    assert torch.equal(output, plain)
    assert (measured.timing.source, measured.timing.new_tokens) == ("measured", NEW_TOKENS)
    assert measured.timing.vision_ms > 0


# The five wrong uses


def compiled_as_a_whole(model):
    return torch.compile(model)


def compiled_in_place(model):
    model.compile()
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward)
    return model


def compiled_tower(model):
    model.model.vision_backbone.compile()
    return model


def compiled_projector(model):
    model.model.vision_backbone.image_projector.compile()
    return model


def compiled_blocks(model):
    for block in model.model.transformer.blocks:
        block.compile()
    return model


@pytest.mark.parametrize(
    ("compile_", "named"),
    [
        (compiled_as_a_whole, "OptimizedModule"),
        (compiled_in_place, "MolmoLike"),
        (compiled_forward, "MolmoLike"),
        (compiled_tower, "model.vision_backbone"),
        (compiled_projector, "model.vision_backbone.image_projector"),
        (compiled_blocks, "model.transformer.blocks.0"),
    ],
)
def test_hooking_a_compiled_model_late_is_refused(compile_, named):
    model = compile_(molmo_like())
    expected = rf"{named} was compiled before \(torch.compile\): hooks inside a compiled module are skipped"
    with pytest.raises(ModelError, match=expected):
        measure_generate(model, molmo_batch(), max_new_tokens=1)
    with pytest.raises(ModelError, match=expected), measuring(model):
        model.generate(**molmo_batch(), max_new_tokens=1)


def test_a_compiled_module_beside_the_hooks_is_no_matter():
    model = molmo_like()
    model.model.transformer.ln_f.compile(backend="eager")
    measured = measure_generate(model, molmo_batch(), max_new_tokens=2)
    assert measured.timing.source == "measured"


@pytest.mark.parametrize(
    "inner",
    [
        lambda model: measure_generate(model, molmo_batch(), max_new_tokens=1),
        lambda model: execute(model, BatchRequest(batch=molmo_batch(), id="a"), setting=Setting(), max_new_tokens=1),
        lambda model: measuring(model).__enter__(),
    ],
    ids=["measure_generate", "execute", "measuring"],
)
def test_nested_measuring_is_refused(inner):
    model = molmo_like()
    with measuring(model) as measured:
        with pytest.raises(MeasurementError, match="another measurement is running on cpu: requests run one at a time"):
            inner(model)
        model.generate(**molmo_batch(), max_new_tokens=1)
    assert measured.timing.source == "measured"


def test_two_threads_measuring_one_model_are_refused():
    model, refused = molmo_like(), []

    def measure_too():
        try:
            with measuring(model):
                model.generate(**molmo_batch(), max_new_tokens=1)
        except MeasurementError as error:
            refused.append(str(error))

    with measuring(model) as measured:
        worker = threading.Thread(target=measure_too)
        worker.start()
        worker.join()
        model.generate(**molmo_batch(), max_new_tokens=1)
    assert len(refused) == 1
    assert "another measurement is running on cpu" in refused[0]
    assert measured.timing.source == "measured"


@pytest.mark.parametrize("key", ["input_ids", "images"])
def test_inputs_on_another_device_are_refused(key):
    model = molmo_like()
    batch = {**molmo_batch(), key: molmo_batch()[key].to("meta")}
    with pytest.raises(DataError, match=f"{key} on meta, the model on cpu; move the batch there"), measuring(model):
        model.generate(**batch, max_new_tokens=1)


class ReturnsThePrompt(MolmoLike):
    def generate(self, input_ids, **_):
        self.forward(input_ids)
        return input_ids


class ReturnsALazyGenerator(MolmoLike):
    def generate(self, input_ids, **_):
        yield self(input_ids)


class NeverEnds(MolmoLike):
    """Thinks on and on, and asks no stopping criteria."""

    def generate(self, input_ids, **_):
        while True:
            self(input_ids)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ReturnsThePrompt, "generate\\(\\) yielded no token: there is no first token"),
        (ReturnsALazyGenerator, "generate\\(\\) returned a generator, which has not yielded a token yet"),
    ],
)
def test_a_generator_that_never_yields_a_token_is_refused(kind, expected):
    model = molmo_like(kind)
    with pytest.raises(MeasurementError, match=expected), measuring(model):
        model.generate(**molmo_batch())
    with pytest.raises(MeasurementError, match=expected):
        measure_generate(model, molmo_batch(), max_new_tokens=1)


# Limits of time


def test_a_generator_that_never_ends_is_ended_at_a_hook(monkeypatch):
    model, clock = molmo_like(NeverEnds), FakeClock()
    delay(monkeypatch, clock, model.lm_head, 1000)
    before = Snapshot(model)
    with pytest.raises(GenerationTimeout, match=r"took 6 s, more than its limit of 5.5 s, and was ended"):
        measure_generate(model, molmo_batch(), max_new_tokens=1, clock=clock, time_limit_s=5.5)
    before.assert_equals(model)


@pytest.mark.parametrize(("limit_s", "tokens"), [(2.5, 3), (0.5, 1)])
def test_a_long_answer_is_ended_at_a_token(monkeypatch, limit_s, tokens):
    model, clock, asked = molmo_like(), FakeClock(), []
    delay(monkeypatch, clock, model.lm_head, 1000)
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", functools.wraps(head)(lambda x: (asked.append(1), head(x))[1]))
    before = Snapshot(model)
    with pytest.raises(GenerationTimeout), measuring(model, clock=clock, time_limit_s=limit_s):
        model.generate(**molmo_batch(), max_new_tokens=9)
    assert len(asked) == tokens
    before.assert_equals(model)


def test_enough_time_changes_nothing(monkeypatch):
    model, clock = molmo_like(), FakeClock()
    delay(monkeypatch, clock, model.lm_head, 1000)
    timing = measure_generate(model, molmo_batch(), max_new_tokens=3, clock=clock, time_limit_s=3).timing
    assert timing.total_ms == 3000


@pytest.mark.parametrize("limit_s", [0, -1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit_s):
    with pytest.raises(ConfigError, match="give seconds above 0, or none"):
        measure_generate(molmo_like(), molmo_batch(), max_new_tokens=1, time_limit_s=limit_s)


def test_an_execution_has_a_limit_too(monkeypatch):
    model, clock = molmo_like(), FakeClock()
    delay(monkeypatch, clock, model.lm_head, 1000)
    before = Snapshot(model)
    with pytest.raises(GenerationTimeout):
        execute(
            model,
            BatchRequest(batch=molmo_batch(), id="a"),
            setting=Setting(moe_topk=1),
            max_new_tokens=9,
            clock=clock,
            time_limit_s=1.5,
        )
    before.assert_equals(model)


# What the caller brings along


def test_a_cache_that_already_holds_the_prompt_is_flagged(bundled, demo_batch):
    cache = DynamicCache(config=bundled.model.config.get_text_config())
    with measuring(bundled.model) as whole:
        bundled.model.generate(**demo_batch, max_new_tokens=2, min_new_tokens=2, past_key_values=cache)
    assert whole.timing.source == "measured"  # it was empty
    with measuring(bundled.model) as rest:
        bundled.model.generate(input_ids=whole.sequences, max_new_tokens=1, past_key_values=cache)
    kept = demo_batch["input_ids"].shape[1] + 1
    assert rest.timing.source == "total_only"
    assert (
        rest.timing.unseen == f"past_key_values brought the keys and values of {kept} tokens: not all of the prompt ran"
    )
