"""``execute``: a sample or a ready batch under a setting, scored, measured and undone."""

import threading
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from chronostat.data.quality import exact
from chronostat.errors import DataError, KnobError, MeasurementError
from chronostat.execution.execute import BatchRequest, execute, request_for, require_replayed, without_capturing
from chronostat.measure.call import Measured
from chronostat.measure.clock import FakeClock
from chronostat.records import Execution, Setting, StageTiming, Turn
from chronostat.scorers.choices import choice
from stand_ins.molmo_like import molmo_batch, molmo_like
from stand_ins.observing import Snapshot, delay

MEASURED = Measured(
    output_ids=(1,),
    sequences=torch.zeros(1, 2),
    timing=StageTiming(source="measured", total_ms=1.0, new_tokens=1, decode_steps=0),
)


@pytest.fixture
def clock():
    return FakeClock()


def test_a_sample_is_preprocessed_executed_and_scored(bundled, demo_sample):
    request = request_for(demo_sample, bundled.processor, exact)
    execution = execute(bundled.model, request, setting=Setting(vision_tokens=80, moe_topk=2), max_new_tokens=8)
    assert (execution.sample_id, execution.split, execution.kind) == (demo_sample.id, "train", demo_sample.kind)
    assert execution.setting == Setting(vision_tokens=80, moe_topk=2)
    assert execution.image_tokens == 80
    assert execution.prompt_tokens > 80
    assert execution.timing.source == "measured"
    assert execution.timing.new_tokens == len(execution.output_ids)
    assert execution.quality == exact(execution.answer, demo_sample.references)
    assert execution.preprocess_ms > 0
    assert execution.request_ms == execution.preprocess_ms + execution.timing.total_ms


def test_the_answer_is_the_decoded_text(bundled, demo_sample):
    execution = execute(
        bundled.model, request_for(demo_sample, bundled.processor, None), setting=Setting(), max_new_tokens=8
    )
    ids = torch.tensor(execution.output_ids)
    assert execution.answer == bundled.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert execution.quality is None


def test_without_references_there_is_no_quality(bundled, demo_sample):
    request = request_for(replace(demo_sample, references=()), bundled.processor, exact)
    assert execute(bundled.model, request, setting=Setting(), max_new_tokens=2).quality is None


def test_preprocessing_is_charged_to_the_request_and_outside_generate(bundled, demo_sample, clock, monkeypatch):
    delay(monkeypatch, clock, bundled.processor, 5, method="apply_chat_template")
    delay(monkeypatch, clock, bundled.model.lm_head, 7, calls=(0,))
    execution = execute(
        bundled.model,
        request_for(demo_sample, bundled.processor, None),
        setting=Setting(),
        max_new_tokens=2,
        controller_ms=3,
        clock=clock,
    )
    assert (execution.preprocess_ms, execution.controller_ms) == (5, 3)
    assert execution.timing.total_ms == execution.timing.prefill_ms == 7
    assert execution.request_ms == 15  # 5 + 3 + 7
    assert execution.charged_ms("prefill_ms") == 10  # 7 + 3
    assert execution.charged_ms("request_ms") == 15


class QueueClock(FakeClock):
    """A device that works on when the host has gone on; 5 ms of somebody else's work are left at first."""

    left_ms = 5

    def synchronize(self):
        self.advance_ms(self.left_ms)
        self.left_ms = 0


def test_preprocessing_waits_for_its_own_copies_and_for_nothing_queued_before(bundled, demo_sample, monkeypatch):
    clock, template = QueueClock(), bundled.processor.apply_chat_template

    def queueing(*args, **kwargs):
        clock.left_ms += 6
        return template(*args, **kwargs)

    monkeypatch.setattr(bundled.processor, "apply_chat_template", queueing)
    request = request_for(demo_sample, bundled.processor, None)
    execution = execute(bundled.model, request, setting=Setting(), max_new_tokens=1, clock=clock)
    assert execution.preprocess_ms == 6


def test_loading_images_is_outside_every_clock(bundled, demo_sample, clock):
    def load_slowly():
        clock.advance_ms(100)
        return demo_sample.load_images()

    request = request_for(replace(demo_sample, load_images=load_slowly), bundled.processor, None)
    execution = execute(bundled.model, request, setting=Setting(), max_new_tokens=1, clock=clock)
    assert execution.request_ms == 0


def test_a_sample_without_an_image_is_refused(bundled, demo_sample):
    with pytest.raises(DataError, match=f"sample {demo_sample.id} has no image"):
        request_for(replace(demo_sample, load_images=tuple), bundled.processor, None)


def molmo_request(**changes):
    return BatchRequest(**{"batch": molmo_batch(), "id": "molmo-1", **changes})


def test_a_ready_batch_is_executed_under_model_knobs():
    model = molmo_like()
    execution = execute(
        model, molmo_request(score=len), setting=Setting(moe_topk=1, block_skip=(0, 2)), max_new_tokens=5
    )
    assert (execution.sample_id, execution.split, execution.kind) == ("molmo-1", "train", None)
    assert execution.quality == 5  # the scorer counts the new tokens
    assert (execution.answer, execution.preprocess_ms) == (None, None)
    assert execution.image_tokens == 4  # places in image_input_idx
    assert execution.prompt_tokens == 8
    assert execution.request_ms == execution.timing.total_ms


def test_a_ready_batch_of_embeddings(bundled, demo_batch):
    embedded = bundled.model.get_input_embeddings()(demo_batch["input_ids"]).detach()
    request = BatchRequest(batch={"inputs_embeds": embedded}, id="embedded")
    execution = execute(bundled.model, request, setting=Setting(), max_new_tokens=1)
    assert (execution.prompt_tokens, execution.image_tokens) == (embedded.shape[1], None)
    assert execution.timing.source == "measured"


def test_a_ready_batch_without_scorer_has_no_quality():
    assert execute(molmo_like(), molmo_request(), setting=Setting(), max_new_tokens=1).quality is None


def test_vision_tokens_below_full_on_a_ready_batch_are_refused(bundled, demo_batch):
    request = BatchRequest(batch=demo_batch, id="ready", processor=bundled.processor)
    with pytest.raises(KnobError, match="vision_tokens = 80 on a ready batch, whose image tokens are already made"):
        execute(bundled.model, request, setting=Setting(vision_tokens=80), max_new_tokens=1)
    full = execute(bundled.model, request, setting=Setting(vision_tokens=272), max_new_tokens=2)
    assert full.image_tokens == 272
    assert full.answer is not None


def test_vision_tokens_on_a_batch_without_processor_are_refused():
    with pytest.raises(KnobError, match="vision_tokens = 16 on a ready batch"):
        execute(molmo_like(), molmo_request(), setting=Setting(vision_tokens=16), max_new_tokens=1)


def test_an_unknown_knob_is_refused_before_anything_runs(bundled, demo_sample, clock):
    request = request_for(demo_sample, bundled.processor, None)
    with pytest.raises(KnobError, match="unknown knob 'depth'; known knobs"):
        execute(bundled.model, request, setting=Setting(depth=2), max_new_tokens=1, clock=clock)


def test_other_types_are_refused(demo_sample):
    model, request = molmo_like(), BatchRequest(batch=molmo_batch(), id="a")
    with pytest.raises(KnobError, match=r"setting = 'full' is a str; give Setting.parse\('knob=value ...'\)"):
        execute(model, request, setting="full", max_new_tokens=1)
    with pytest.raises(
        DataError, match=r"the request is a Sample; make it with request_for\(sample, processor, quality"
    ):
        execute(model, demo_sample, setting=Setting(), max_new_tokens=1)


def test_batch_size_two_is_refused():
    batch = {key: torch.cat([value, value]) for key, value in molmo_batch().items()}
    with pytest.raises(DataError, match="batch size 2 is not supported"):
        execute(molmo_like(), molmo_request(batch=batch), setting=Setting(), max_new_tokens=1)


def test_generation_config_is_passed_on():
    model = molmo_like()
    first = execute(model, molmo_request(), setting=Setting(), max_new_tokens=1).output_ids[0]
    config = GenerationConfig(suppress_tokens=[first], pad_token_id=0)
    execution = execute(model, molmo_request(), setting=Setting(), max_new_tokens=3, generation_config=config)
    assert first not in execution.output_ids
    assert len(execution.output_ids) == 3


def test_a_second_thread_is_refused_before_it_touches_the_model(monkeypatch):
    model, refused, topk = molmo_like(), [], []
    head = model.lm_head.forward

    def execute_too():
        try:
            execute(model, molmo_request(), setting=Setting(moe_topk=1), max_new_tokens=1)
        except MeasurementError as error:
            refused.append(error)

    def meanwhile(hidden):
        model.lm_head.forward = head  # once
        thread = threading.Thread(target=execute_too)
        thread.start()
        thread.join()
        topk.append(model.model.transformer["blocks"][0].mlp.top_k)
        return head(hidden)

    monkeypatch.setattr(model.lm_head, "forward", meanwhile)
    execute(model, molmo_request(), setting=Setting(), max_new_tokens=1)
    assert len(refused) == 1
    assert topk == [2]


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_what_the_model_raises_rises_and_undoes_the_knobs(monkeypatch, error):
    model = molmo_like()
    setting = Setting(moe_topk=1, block_skip=(0, 1))
    execute(model, molmo_request(), setting=setting, max_new_tokens=1)
    before = Snapshot(model)

    def fail(_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(model.lm_head, "forward", fail)
        with pytest.raises(type(error)):
            execute(model, molmo_request(), setting=setting, max_new_tokens=3)
    before.assert_equals(model)
    assert execute(model, molmo_request(), setting=setting, max_new_tokens=1).timing.source == "measured"


@pytest.mark.parametrize(("captured", "calls"), [((False,), 1), ((True, False), 2)])
def test_an_execution_that_captured_is_made_once_more(captured, calls):
    made = []

    def execute_once(seen):
        seen(replace(MEASURED, captured=captured[len(made)]))
        made.append(Execution(sample_id="photo", split="test", setting=Setting(), timing=MEASURED.timing))
        return made[-1]

    execution, measured = without_capturing(execute_once)
    assert len(made) == calls
    assert execution is made[-1]
    assert not measured.captured


def test_what_fell_back_is_refused_where_no_record_keeps_it():
    require_replayed(MEASURED, "full: photo")
    message = r"^full: photo fell back from the engine 'graph' \(a hook\); measure with --engine eager$"
    with pytest.raises(MeasurementError, match=message):
        require_replayed(replace(MEASURED, fell_back="a hook"), "full: photo")


def test_a_conversation_is_executed_and_a_choice_is_scored_with_its_options(bundled, demo_sample):
    turns = (
        Turn(role="user", parts=("First ", 0)),
        Turn(role="assistant", parts=("yes",)),
        Turn(role="user", parts=("then ", 1, demo_sample.prompt)),
    )
    sample = replace(demo_sample, turns=turns, load_images=lambda: demo_sample.load_images() * 2)
    one = execute(bundled.model, request_for(demo_sample, bundled.processor, None), setting=Setting(), max_new_tokens=4)
    options = (one.answer, f"not {one.answer}")
    asked = request_for(replace(demo_sample, options=options, references=("A",)), bundled.processor, choice)
    assert execute(bundled.model, asked, setting=Setting(), max_new_tokens=4).quality == 1
    two = execute(bundled.model, request_for(sample, bundled.processor, None), setting=Setting(), max_new_tokens=4)
    assert two.image_tokens == 2 * one.image_tokens
