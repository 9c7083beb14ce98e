"""A wrapper takes the place of the model: what runs is measured, and what was expected and never ran is a doubt."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, StoppingCriteria

from chronostat import measuring
from chronostat.errors import DataError, ModelError
from chronostat.measure.clock import FakeClock
from chronostat.measure.flow import parts_followed
from chronostat.measure.generate import measure_generate
from stand_ins.observing import delay, hook_counts
from stand_ins.unlisted import Forwarding, OwnGenerate, Plain, UnlistedConfig, unlisted, unlisted_batch
from zoo.build import build

ADAPTED = ["q_proj", "v_proj"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 still asks it


@pytest.fixture
def lora():
    """LLaVA under a LoRA of peft, and a request."""
    zoo = build("llava")
    return get_peft_model(zoo.model, LoraConfig(r=2, target_modules=ADAPTED)).eval(), zoo.batch


def late(monkeypatch, model, batch, owner, method="forward"):
    """Prefill, projector, rest of the prefill and other, with 7 ms in the first call of a method."""
    clock = FakeClock()
    delay(monkeypatch, clock, owner, 7, method=method, calls=(0,))
    timing = measure_generate(model, batch, max_new_tokens=3, clock=clock).timing
    assert (timing.source, timing.unseen) == ("measured", None)
    return timing.prefill_ms, timing.vision_ms, timing.projector_ms, timing.llm_prefill_ms, timing.prefill_rest_ms


def test_the_glue_between_tower_and_forward_is_prefill_under_an_adapter(lora, monkeypatch):
    model, batch = lora
    inner = model.base_model.model.model
    assert late(monkeypatch, model, batch, inner, "get_image_features") == (7, 0, 0, 0, 7)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("vision_tower", (7, 7, 0, 0, 0)),
        ("multi_modal_projector", (7, 0, 7, 0, 0)),
        ("language_model.layers.0", (7, 0, 0, 7, 0)),
        ("language_model.embed_tokens", (7, 0, 0, 0, 7)),
        ("language_model.layers.3.self_attn.q_proj.lora_A.default", (7, 0, 0, 7, 0)),
    ],
)
def test_a_delay_under_an_adapter_lands_in_its_stage(lora, monkeypatch, place, expected):
    model, batch = lora
    assert late(monkeypatch, model, batch, model.base_model.model.model.get_submodule(place)) == expected


def test_an_adapter_answers_as_without_measuring_and_keeps_nothing(lora):
    model, batch = lora
    plain = model.generate(**batch, max_new_tokens=3)
    before = hook_counts(model)
    with parts_followed(model):
        measured = measure_generate(model, batch, max_new_tokens=3)
    assert torch.equal(measured.sequences, plain)
    assert hook_counts(model) == before
    inner = model.base_model.model.model
    assert "get_image_features" not in vars(inner) | vars(model) | vars(model.base_model)


class Later(StoppingCriteria):
    """Notes how often it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, input_ids, scores, **_):
        self.asked += 1
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("wrap", [lambda model: model, Forwarding], ids=["bare", "wrapped"])
def test_ids_and_criteria_by_position_are_read_through_a_wrapper(wrap):
    model = wrap(unlisted(Plain))
    batch, asked = unlisted_batch(), Later()
    config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    plain = model.generate(batch["input_ids"], config, pixel_values=batch["pixel_values"])
    with measuring(model, clock=FakeClock()) as measured:
        output = model.generate(batch["input_ids"], config, None, [asked], pixel_values=batch["pixel_values"])
    assert torch.equal(output, plain)
    assert (measured.timing.source, measured.timing.new_tokens, asked.asked) == ("measured", 3, 3)
    assert measured.output_ids == tuple(plain[0, batch["input_ids"].shape[1] :].tolist())


def test_ids_by_position_are_read_through_an_adapter(lora):
    model, batch = lora
    others = {name: value for name, value in batch.items() if name != "input_ids"}
    with measuring(model, clock=FakeClock()) as measured:
        output = model.generate(batch["input_ids"], **others, max_new_tokens=3)
    assert (measured.timing.source, measured.output_ids) == ("measured", tuple(output[0, -3:].tolist()))


def test_two_requests_by_position_are_refused_through_a_wrapper(lora):
    model, batch = lora
    twice = batch["input_ids"].repeat(2, 1)
    with pytest.raises(DataError, match="batch size 2"), measuring(model):
        model.generate(twice, max_new_tokens=3)


def test_a_wrapper_around_a_generate_of_its_own_is_measured(monkeypatch):
    model = Forwarding(unlisted(OwnGenerate))
    with parts_followed(model):
        model.generate(**unlisted_batch(), max_new_tokens=1)
    inner = model.inner
    assert late(monkeypatch, model, unlisted_batch(), inner, "shuffle") == (7, 0, 0, 0, 7)


class OwnLoop(OwnGenerate):
    """Has a loop of its own, and nothing of the library's generation in it."""

    def __init__(self, config):
        super().__init__(config)
        self.decoder, self.head = self.language_model.model, self.language_model.lm_head
        del self.language_model


def test_a_loop_of_the_models_own_is_refused_with_what_to_do():
    with pytest.raises(ModelError, match=r"OwnLoop does not generate one token .* add GenerationMixin to the bases"):
        measure_generate(OwnLoop(UnlistedConfig()), unlisted_batch(), max_new_tokens=2, clock=FakeClock())


class Unused(OwnGenerate):
    """Has the method that encodes images, and encodes them past it."""

    def get_image_features(self, pixel_values):
        return self.extract_feature(pixel_values)


def test_a_method_that_should_have_encoded_the_image_and_was_not_called_is_a_doubt():
    timing = measure_generate(unlisted(Unused), unlisted_batch(), max_new_tokens=2, clock=FakeClock()).timing
    assert timing.source == "total_only"
    assert "the image was encoded, but get_image_features was not called" in timing.unseen
