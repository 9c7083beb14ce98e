"""``measure_generate``: the same output, nothing left behind, clear refusals, and the odd ways of generating."""

import functools
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from chronostat.errors import ConfigError, DataError, MeasurementError, ModelError
from chronostat.measure.clock import FakeClock
from chronostat.measure.generate import device_of, measure_generate
from chronostat.measure.hooks import StageRecorder
from stand_ins.batches import batch_of
from stand_ins.molmo_like import molmo_batch, molmo_like
from stand_ins.observing import Snapshot, delay

ONE_TOKEN_AFTER_THE_OTHER = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True},
    "chunked prefill": {"prefill_chunk_size": 50},
}


class CountingClock(FakeClock):
    """Notes the order of synchronisations and marks."""

    def __init__(self):
        super().__init__()
        self.events = []

    def synchronize(self):
        self.events.append("synchronize")

    def mark(self):
        self.events.append("mark")
        return super().mark()


def config_of(model, **options):
    return GenerationConfig(**{"pad_token_id": 0, "eos_token_id": model.generation_config.eos_token_id, **options})


@pytest.mark.parametrize("way", ONE_TOKEN_AFTER_THE_OTHER)
def test_output_is_that_of_a_plain_call(bundled, demo_batch, way):
    config = config_of(bundled.model, max_new_tokens=4, min_new_tokens=4, **ONE_TOKEN_AFTER_THE_OTHER[way])
    torch.manual_seed(0)
    plain = bundled.model.generate(**demo_batch, generation_config=config)
    before = Snapshot(bundled.model)
    torch.manual_seed(0)
    measured = measure_generate(bundled.model, demo_batch, max_new_tokens=4, generation_config=config)
    before.assert_equals(bundled.model)
    assert torch.equal(measured.sequences, plain)
    assert measured.output_ids == tuple(plain[0, demo_batch["input_ids"].shape[1] :].tolist())
    timing = measured.timing
    assert (timing.source, timing.new_tokens, timing.decode_steps) == ("measured", 4, 3)
    assert timing.decode_ms_per_token == timing.decode_ms / 3


def test_molmo_output_is_that_of_a_plain_call():
    model = molmo_like()
    plain = model.generate(**molmo_batch(), max_new_tokens=6)
    before = Snapshot(model)
    measured = measure_generate(model, molmo_batch(), max_new_tokens=6)
    before.assert_equals(model)
    assert torch.equal(measured.sequences, plain)
    assert measured.timing.source == "measured"


def test_real_stages_lie_inside_each_other(bundled, demo_batch):
    timing = measure_generate(bundled.model, demo_batch, max_new_tokens=3).timing
    parts = timing.vision_ms + timing.projector_ms + timing.llm_prefill_ms + timing.prefill_rest_ms
    assert parts == pytest.approx(timing.prefill_ms)
    assert min(timing.vision_ms, timing.projector_ms, timing.llm_prefill_ms, timing.prefill_rest_ms) > 0
    assert timing.prefill_ms < timing.ttft_ms < timing.total_ms
    assert timing.other_ms > 0
    assert timing.other_ms == pytest.approx(timing.total_ms - timing.prefill_ms - timing.decode_ms)


def test_an_early_end_of_sequence_ends_decode(bundled, demo_batch):
    first = measure_generate(bundled.model, demo_batch, max_new_tokens=2, generation_config=config_of(bundled.model))
    answer = first.output_ids
    config = config_of(bundled.model, eos_token_id=answer[1])
    timing = measure_generate(bundled.model, demo_batch, max_new_tokens=8, generation_config=config).timing
    assert (timing.source, timing.new_tokens, timing.decode_steps) == ("measured", 2, 1)


def test_one_new_token_has_no_decode(bundled, demo_batch):
    timing = measure_generate(bundled.model, demo_batch, max_new_tokens=1).timing
    assert (timing.source, timing.new_tokens, timing.decode_steps) == ("measured", 1, 0)
    assert (timing.decode_ms, timing.decode_ms_per_token) == (None, None)
    assert timing.other_ms == timing.total_ms - timing.prefill_ms


@pytest.mark.parametrize("count", [0, 3])
def test_any_number_of_images(bundled, demo_sample, count):
    images = demo_sample.load_images() * count
    batch = batch_of(bundled, images, demo_sample.prompt, max_patches=1)
    plain = bundled.model.generate(**batch, max_new_tokens=3)
    measured = measure_generate(bundled.model, batch, max_new_tokens=3)
    assert torch.equal(measured.sequences, plain)
    assert measured.timing.source == "measured"
    assert (measured.timing.vision_ms is None) == (measured.timing.projector_ms is None) == (count == 0)


def test_beams_report_steps_but_no_time_per_token(bundled, demo_batch):
    config = config_of(bundled.model, num_beams=2, max_new_tokens=4, min_new_tokens=4)
    plain = bundled.model.generate(**demo_batch, generation_config=config)
    measured = measure_generate(bundled.model, demo_batch, max_new_tokens=4, generation_config=config)
    assert torch.equal(measured.sequences, plain)
    timing = measured.timing
    assert (timing.source, timing.decode_steps, timing.decode_ms_per_token) == ("measured", 3, None)
    assert timing.decode_ms > 0


def test_assisted_decoding_reports_rounds_but_no_time_per_token(bundled, demo_batch):
    config = config_of(bundled.model, prompt_lookup_num_tokens=3, max_new_tokens=6, min_new_tokens=6)
    plain = bundled.model.generate(**demo_batch, generation_config=config)
    timing = measure_generate(bundled.model, demo_batch, max_new_tokens=6, generation_config=config).timing
    assert timing.new_tokens == plain.shape[1] - demo_batch["input_ids"].shape[1]
    assert timing.decode_ms_per_token is None
    assert timing.decode_steps <= 5


def test_beams_that_the_model_itself_is_set_to_count(bundled, demo_batch, monkeypatch):
    monkeypatch.setattr(bundled.model.generation_config, "num_beams", 2)
    timing = measure_generate(
        bundled.model, demo_batch, max_new_tokens=3, generation_config=GenerationConfig(min_new_tokens=3)
    ).timing
    assert timing.decode_ms_per_token is None


def test_one_synchronize_before_and_one_after(bundled, demo_batch):
    clock = CountingClock()
    measure_generate(bundled.model, demo_batch, max_new_tokens=3, clock=clock)
    assert clock.events[0] == clock.events[-1] == "synchronize"
    assert clock.events.count("synchronize") == 2
    # entry and return; get_image_features, vision, projector, forward and blocks twice each; 3 tokens
    assert clock.events.count("mark") == 2 + 5 * 2 + 3


def test_a_given_generation_config_is_not_changed(bundled, demo_batch):
    config = config_of(bundled.model, max_new_tokens=7)
    measure_generate(bundled.model, demo_batch, max_new_tokens=1, generation_config=config)
    assert config.max_new_tokens == 7


def test_dictionaries_from_generate_are_understood(bundled, demo_batch):
    config = config_of(bundled.model, return_dict_in_generate=True, output_scores=True)
    measured = measure_generate(bundled.model, demo_batch, max_new_tokens=2, generation_config=config)
    plain = measure_generate(bundled.model, demo_batch, max_new_tokens=2)
    assert measured.output_ids == plain.output_ids


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt(), ValueError("odd")])
@pytest.mark.parametrize("part", ["model.vision_backbone", "model.transformer.blocks.2", "lm_head", ""])
def test_nothing_stays_when_the_model_raises(monkeypatch, error, part):
    model = molmo_like()
    module = model.get_submodule(part)
    before = Snapshot(model)

    @functools.wraps(module.forward)  # generate() reads the signature
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(module, "forward", fail)
        with pytest.raises(type(error)):
            measure_generate(model, molmo_batch(), max_new_tokens=3)
    before.assert_equals(model)
    assert measure_generate(model, molmo_batch(), max_new_tokens=3).timing.source == "measured"


def test_wrapped_methods_are_restored_when_the_model_raises(bundled, demo_batch, monkeypatch):
    before = Snapshot(bundled.model)
    with monkeypatch.context() as broken:

        def fail(*_, **__):
            raise RuntimeError("no memory")

        broken.setattr(bundled.model.model.vision_tower, "forward", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            measure_generate(bundled.model, demo_batch, max_new_tokens=3)
    before.assert_equals(bundled.model)
    assert "get_image_features" not in vars(bundled.model.model)


@pytest.mark.parametrize("fails", [False, True])
def test_no_reference_to_the_model_stays(monkeypatch, fails):
    model = molmo_like()
    if fails:
        monkeypatch.setattr(model.lm_head, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure_generate(model, molmo_batch(), max_new_tokens=2)
        monkeypatch.undo()
    else:
        measured = measure_generate(model, molmo_batch(), max_new_tokens=2)
        assert measured.timing.source == "measured"
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_measurement_inside_another_is_refused(monkeypatch):
    model = molmo_like()
    head = model.lm_head.forward

    def nested(hidden):
        model.lm_head.forward = head  # once
        with pytest.raises(MeasurementError, match="another measurement is running on cpu: requests run one at a time"):
            measure_generate(model, molmo_batch(), max_new_tokens=1)
        return head(hidden)

    monkeypatch.setattr(model.lm_head, "forward", nested)
    assert measure_generate(model, molmo_batch(), max_new_tokens=2).timing.source == "measured"


def test_a_measurement_from_a_second_thread_is_refused(monkeypatch):
    model = molmo_like()
    refused = []

    def measure_too():
        try:
            measure_generate(model, molmo_batch(), max_new_tokens=1)
        except MeasurementError as error:
            refused.append(str(error))

    head = model.lm_head.forward

    def meanwhile(hidden):
        model.lm_head.forward = head  # once
        thread = threading.Thread(target=measure_too)
        thread.start()
        thread.join()
        return head(hidden)

    monkeypatch.setattr(model.lm_head, "forward", meanwhile)
    measure_generate(model, molmo_batch(), max_new_tokens=1)
    assert len(refused) == 1
    assert "another measurement is running on cpu" in refused[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, r"needs input_ids of shape \[1, tokens\]"),
        ({"input_ids": torch.ones(5, dtype=torch.long)}, r"needs input_ids of shape \[1, tokens\]"),
        ({"input_ids": [[1, 2]]}, "the batch holds a list, no tensors; give the processor return_tensors='pt'"),
        ({"input_ids": np.ones((1, 5))}, "the batch holds a ndarray, no tensors"),
        (
            {"input_ids": torch.ones(2, 5, dtype=torch.long)},
            "batch size 2 is not supported: requests run one at a time",
        ),
        ({"pixel_values_videos": torch.ones(1)}, r"holds a video \(pixel_values_videos\)"),
        ({"video_grid_thw": torch.ones(1)}, r"holds a video \(video_grid_thw\)"),
        ({"images": torch.ones(1, device="meta")}, "images on meta, the model on cpu; move the batch there first"),
    ],
)
def test_a_batch_that_is_not_one_request_is_refused(change, message):
    model = molmo_like()
    before = Snapshot(model)
    with pytest.raises(DataError, match=message):
        measure_generate(model, {**molmo_batch(), **change}, max_new_tokens=1)
    before.assert_equals(model)


@pytest.mark.parametrize("batch", [None, torch.ones(1, 5, dtype=torch.long), [molmo_batch()]])
def test_a_batch_without_names_is_refused(batch):
    message = f"the batch is a {type(batch).__name__}; pass one request as the processor makes it, by name"
    with pytest.raises(DataError, match=message):
        measure_generate(molmo_like(), batch, max_new_tokens=1)


def test_taking_hooks_out_is_part_of_neither_prefill_nor_decode(monkeypatch):
    clock, removing = FakeClock(), StageRecorder._first_token

    def slow(recorder):
        clock.advance_ms(50)
        removing(recorder)

    monkeypatch.setattr(StageRecorder, "_first_token", slow)
    timing = measure_generate(molmo_like(), molmo_batch(), max_new_tokens=3, clock=clock).timing
    assert timing.source == "measured"
    assert (timing.prefill_ms, timing.decode_ms, timing.ttft_ms, timing.total_ms) == (0, 0, 50, 50)


def test_several_answers_to_one_request_are_refused():
    config = GenerationConfig(num_return_sequences=2, do_sample=True)
    with pytest.raises(DataError, match="num_return_sequences = 2: a request has one answer"):
        measure_generate(molmo_like(), molmo_batch(), max_new_tokens=1, generation_config=config)


def test_a_model_on_several_devices_is_refused():
    model = molmo_like()
    model.lm_head = nn.Linear(16, 32, device="meta")
    with pytest.raises(ModelError, match="MolmoLike is spread over cpu, meta; one clock can only follow one device"):
        measure_generate(model, molmo_batch(), max_new_tokens=1)


def test_a_model_on_a_device_without_clock_is_refused():
    model = molmo_like().to("meta")
    batch = {key: value.to("meta") for key, value in molmo_batch().items()}
    assert device_of(model).type == "meta"
    with pytest.raises(ModelError, match="on device meta; latencies can be measured on cpu and cuda"):
        measure_generate(model, batch, max_new_tokens=1)


@pytest.mark.parametrize("number", [0, -1, 2.5, "8", None])
def test_a_length_that_is_none_is_refused(number):
    with pytest.raises(ConfigError, match=f"max_new_tokens = {number!r}: give a whole number of at least 1"):
        measure_generate(molmo_like(), molmo_batch(), max_new_tokens=number)


def test_a_length_of_numpy_is_a_whole_number_too():
    assert measure_generate(molmo_like(), molmo_batch(), max_new_tokens=np.int64(1)).timing.new_tokens == 1


def test_what_is_no_clock_is_refused():
    with pytest.raises(MeasurementError, match=r"clock = 5 is no Clock .* or take clock_for\(device\)"):
        measure_generate(molmo_like(), molmo_batch(), max_new_tokens=1, clock=5)


def test_what_is_no_model_is_refused(bundled):
    with pytest.raises(ModelError, match=r"a Vlm is no model; pass one of transformers, such as load_vlm\(\).model"):
        measure_generate(bundled, {}, max_new_tokens=1)


def test_a_model_that_cannot_generate_is_refused():
    class Encoder(PreTrainedModel):
        config_class = type(molmo_like().config)

        def __init__(self, config):
            super().__init__(config)
            self.linear = nn.Linear(2, 2)

    with pytest.raises(ModelError, match=r"Encoder has no generate\(\)"):
        measure_generate(Encoder(molmo_like().config), molmo_batch(), max_new_tokens=1)


def test_installing_and_removing_hooks_is_not_counted(monkeypatch):
    model, clock = molmo_like(), FakeClock()
    for method in ("register_forward_pre_hook", "register_forward_hook"):
        delay(monkeypatch, clock, model.model.vision_backbone, 7, method=method)
    assert measure_generate(model, molmo_batch(), max_new_tokens=1, clock=clock).timing.total_ms == 0
