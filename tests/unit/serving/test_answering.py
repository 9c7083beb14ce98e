"""One request answered: what is charged, what is executed, and what is told where it fails."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

import chronostat.serving.answering
from chronostat.errors import DataError, ExecutionError, KnobError, MeasurementError
from chronostat.measure.clock import FakeClock
from chronostat.records import Execution, Setting, StageTiming
from chronostat.records.messages import Turn
from chronostat.serving.answering import ModelAnswerer, explained
from chronostat.serving.choosing import Fixed
from chronostat.wire.asks import Ask, AskedBudget, Sampling
from chronostat.wire.errors import Refused

ENDS, OTHER = 2, 9  # the bundled tokenizer's end, and another token


class Executed:
    """Stands where ``execute`` stands: 4 ms of preprocessing, 3 around generate(), 40 in it, 30 of these to a token."""

    def __init__(self, clock, tokens=(OTHER, ENDS), source="measured"):
        self.clock, self.tokens, self.source, self.options = clock, tokens, source, []

    def __call__(self, model, request, *, setting, criteria, controller_ms, **options):
        self.options.append({**options, "setting": setting, "asked": request.sample.asked, "images": request.images})
        for count in range(1, len(self.tokens) + 1):
            criteria[0](torch.tensor([[1, *self.tokens[:count]]]), None)
        self.clock.advance_ms(47.0)
        seen = {"ttft_ms": 30.0, "prefill_ms": 28.0} if self.source == "measured" else {"unseen": "no blocks"}
        timing = StageTiming(source=self.source, total_ms=40.0, new_tokens=2, decode_steps=1, **seen)
        return Execution(
            sample_id=request.sample.id,
            split="test",
            setting=setting,
            timing=timing,
            output_ids=self.tokens,
            preprocess_ms=4.0,
            controller_ms=controller_ms,
            prompt_tokens=20,
            image_tokens=12,
        )


@pytest.fixture
def made(bundled, monkeypatch):
    def make(metric="request_ms", **options):
        clock = FakeClock()
        executed = Executed(clock, **options)
        monkeypatch.setattr(chronostat.serving.answering, "execute", executed)
        answerer = ModelAnswerer(
            vlm=bundled,
            chooser=Fixed(setting=Setting(moe_topk=1), metric=metric),
            settings=(Setting(moe_topk=1), Setting(moe_topk=2)),
            clock=clock,
            new_tokens=8,
            context_tokens=512,
        )
        return answerer, clock, executed

    return make


def ask(*parts, **fields):
    return Ask(id="a", received_ns=0, turns=(Turn(role="user", parts=parts or ("Hi",)),), **fields)


def answered(answerer, asked, gone=lambda: False):
    return answerer.answer(asked, lambda _: None, gone)


def png(size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(("metric", "charged_ms"), [("request_ms", 57.0), ("total_ms", 57.0), ("ttft_ms", 47.0)])
def test_what_is_charged_begins_with_the_receipt_and_ends_with_the_metric(made, metric, charged_ms):
    answerer, clock, _ = made(metric)
    clock.advance_ms(10.0)  # in the line; then 47 of execute(), less 40 - 30 where the first token ends it
    for budget_ms in (charged_ms, charged_ms - 0.1):
        clock._now_ns = 10_000_000
        one = answered(answerer, ask(budget=AskedBudget(ms=budget_ms)))
        assert (one.queue_ms, one.image_ms, one.wall_ms, one.charged_ms) == (10.0, 0.0, 47.0, charged_ms)
        assert one.kept is (budget_ms == charged_ms)
    assert one.first_token_ms == 37.0
    assert answered(answerer, ask(budget=AskedBudget(ms=1.0, kind="mean"))).kept is None
    assert answered(answerer, ask()).kept is None


def test_pictures_first_are_no_conversation_and_anything_else_is(made):
    answerer, _, executed = made()
    answered(answerer, ask(0, 1, "What?", images=(png(), png((4, 2)))))
    assert executed.options[-1]["asked"] == "What?"
    assert [image.size for image in executed.options[-1]["images"]] == [(8, 8), (4, 2)]
    answered(answerer, ask("What?", 0, images=(png(),)))
    assert executed.options[-1]["asked"] == (Turn(role="user", parts=("What?", 0)),)


def test_lengths_and_sampling_reach_generate(made):
    answerer, _, executed = made()
    answered(answerer, ask())
    assert executed.options[-1]["max_new_tokens"] == 8
    assert executed.options[-1]["generation_config"] is executed.options[-1]["sampling_seed"] is None
    answered(answerer, ask(new_tokens=5, least_tokens=3, seed=7))
    assert executed.options[-1]["max_new_tokens"] == 5
    assert executed.options[-1]["generation_config"].min_new_tokens == 3
    assert answered(answerer, ask(new_tokens=5, least_tokens=3)).forced
    assert not answered(answerer, ask(new_tokens=5, seed=7)).forced
    assert executed.options[-1]["sampling_seed"] is None
    answered(answerer, ask(seed=7, sampling=Sampling(temperature=0.5, top_p=0.9)))
    config = executed.options[-1]["generation_config"]
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 0.5, 0.9, 0)
    assert executed.options[-1]["sampling_seed"] == 7
    answered(answerer, ask(sampling=Sampling(temperature=0.0, top_p=0.9)))
    assert executed.options[-1]["sampling_seed"] is None
    answered(answerer, ask(sampling=Sampling(temperature=1.0, top_p=1.0)))
    assert executed.options[-1]["sampling_seed"] is not None


@pytest.mark.parametrize(
    ("tokens", "new_tokens", "finish"),
    [((OTHER, ENDS), 2, "stop"), ((OTHER, OTHER), 2, "length"), ((OTHER, ENDS), 8, "stop")],
)
def test_an_answer_says_why_it_ends(made, bundled, tokens, new_tokens, finish):
    tokens = tuple(bundled.model.generation_config.eos_token_id if each == ENDS else each for each in tokens)
    answerer, _, _ = made(tokens=tokens)
    assert answered(answerer, ask(new_tokens=new_tokens)).finish == finish


def test_text_that_the_context_does_not_hold_is_refused_before_it_runs(made):
    answerer, _, executed = made()
    with pytest.raises(Refused, match=r"messages have \d{3,} tokens of text, and 1 of the answer;") as caught:
        answered(answerer, ask("what is red? " * 200))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert executed.options == []


def test_every_setting_is_warm_on_pictures_of_several_sizes_and_text(made):
    answerer, _, executed = made()
    answerer.warm_up(lambda: False)
    assert answerer.source == "measured"
    assert {str(each["setting"]) for each in executed.options} == {"full", "moe_topk=1", "moe_topk=2"}
    sizes = {image.size for each in executed.options for image in each["images"]}
    assert sizes == {(64, 64), (448, 448), (900, 600), (400, 1000)}
    assert any(not each["images"] for each in executed.options)


def test_a_server_that_is_told_to_end_does_not_warm_up_the_rest(made):
    answerer, _, executed = made()
    answerer.warm_up(lambda: len(executed.options) == 4)
    assert len(executed.options) == 4


def test_a_first_token_that_cannot_be_seen_is_no_end_of_a_budget(made):
    answerer, _, _ = made("ttft_ms", source="total_only")
    with pytest.raises(MeasurementError, match=r"cannot be seen on this model \(no blocks\).*metric is request_ms"):
        answerer.warm_up(lambda: False)
    made("request_ms", source="total_only")[0].warm_up(lambda: False)


def test_whoever_learns_from_requests_is_told_of_each(made):
    answerer, _, _ = made()
    noted = []
    answerer.answered = lambda request, one: noted.append((request.sample.prompt, one.text))
    one = answered(answerer, replace(ask("Hi"), stop=("x",)))
    assert noted == [("Hi", one.text)]
    answered(answerer, ask("Hi"), gone=lambda: True)
    assert len(noted) == 1
    # who went away too late already is a broken promise
    for budget_ms, told in ((1e4, 1), (1.0, 2)):
        answered(answerer, ask("Hi", budget=AskedBudget(ms=budget_ms)), gone=lambda: True)
        assert len(noted) == told


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("cannot read the image"), 400, "cannot read the image"),
        (KnobError("no such knob"), 500, "the server cannot answer: no such knob"),
        (ExecutionError("no token came out"), 500, r"the model raised ExecutionError \(no token came out\)"),
        (ValueError("a\n b"), 500, r"the model raised ValueError \(a b\); the next request is answered again"),
        (Refused(422, "no", code="x"), 422, "no"),
    ],
)
def test_what_answering_raises_is_told_in_words(error, status, said):
    refused = explained(error)
    assert refused.status == status
    with pytest.raises(Refused, match=said):
        raise refused
