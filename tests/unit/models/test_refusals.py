"""A request that a processor refuses: whose fault it is, in words."""

import copy

import pytest
import torch
from PIL import Image

from chronostat.errors import ChronostatError, DataError, ModelError
from chronostat.models.load import load_vlm
from chronostat.models.prepare import conversation_of
from chronostat.models.refusals import try_prepare
from chronostat.records import Turn

IMAGE, OTHER = Image.new("RGB", (64, 64)), Image.new("RGB", (128, 64), "red")


@pytest.fixture
def processor(bundled):
    return copy.copy(bundled.processor)


def tried(processor, asked="What?", images=(IMAGE,)):
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    return try_prepare(processor, images, asked, model="the model", request="r1", **options)


def refused(processor, asked="What?", images=(IMAGE,)):
    with pytest.raises(ChronostatError) as said:
        tried(processor, asked, images)
    return said.value


def test_a_request_that_is_taken(processor):
    assert tried(processor)["pixel_values"].is_floating_point()


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ raise_exception('only assistants') }}{% endfor %}",
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}",  # takes text, not a list of parts
        "{% for m in messages %}{{ nothing.there }}{% endfor %}",
    ],
)
def test_a_template_that_refuses_the_message(processor, template):
    processor.chat_template = template
    error = refused(processor)
    assert isinstance(error, DataError)
    assert str(error).startswith("the chat template of the model refuses r1 (")
    assert str(error).endswith("; change its messages, or what the template is told with model.template")


def test_a_template_without_an_image_is_the_models_fault(processor):
    processor.chat_template = processor.chat_template.replace("<IMG_CONTEXT>", "")
    error = refused(processor)
    assert isinstance(error, ModelError)
    assert str(error).startswith("the chat template of the model leaves images out: it writes the same text with")


def test_a_template_without_an_image_whose_processor_takes_the_text_alone(processor, monkeypatch):
    whole = type(processor).__call__

    def without_pixels(*given, **options):
        batch = whole(*given, **options)
        del batch["pixel_values"]
        return batch

    monkeypatch.setattr(type(processor), "__call__", without_pixels)
    error = refused(processor)
    assert isinstance(error, ModelError)
    assert str(error).startswith("the chat template of the model leaves images out")


def test_a_prompt_with_a_stray_place_is_the_requests_fault(processor):
    error = refused(processor, "What is <IMG_CONTEXT>?")
    assert isinstance(error, DataError)
    assert str(error).startswith("the processor of the model refuses r1 (The total number of <IMG_CONTEXT> tokens")


def test_a_missing_package_is_said_to_be_missing(processor, monkeypatch):
    def lacking(*_, **__):
        raise ImportError("FooProcessor requires\nthe foo library")

    monkeypatch.setattr(type(processor), "__call__", lacking)
    error = refused(processor)
    assert isinstance(error, ModelError)
    message = "the processor of the model needs a package that is not installed (FooProcessor requires the foo library)"
    assert str(error) == f"{message}; install it"


def test_a_missing_package_is_said_when_the_model_is_loaded(monkeypatch):
    def lacking(*_, **__):
        raise ImportError("needs the foo library")

    monkeypatch.setattr("chronostat.models.load.AutoProcessor.from_pretrained", lacking)
    with pytest.raises(ModelError, match=r"needs a package that is not installed \(needs the foo library\); install"):
        load_vlm(None)


def test_images_stand_at_their_places_in_a_conversation(processor):
    turns = [
        Turn(role="system", parts=("Be brief.",)),
        Turn(role="user", parts=("Compare ", 1, " with ", 0, ".")),
        Turn(role="assistant", parts=("Same.",)),
        Turn(role="user", parts=("Why?",)),
    ]
    made = conversation_of((IMAGE, OTHER), turns)
    assert [message["role"] for message in made] == ["system", "user", "assistant", "user"]
    assert [part.get("text", part.get("image")) for part in made[1]["content"]] == [
        "Compare ",
        OTHER,
        " with ",
        IMAGE,
        ".",
    ]
    # the red one comes first in the pixels as well: 64 x 128 px are its tiles
    first = tried(processor, turns, (IMAGE, OTHER))["pixel_values"]
    second = tried(processor, "Same?", (OTHER, IMAGE))["pixel_values"]
    assert torch.equal(first, second)


def test_what_the_template_is_told_stands_in_it():
    thinking = load_vlm(None, template={"add_generation_prompt": False})
    assert tried(thinking.processor)["input_ids"].shape[1] == tried(load_vlm(None).processor)["input_ids"].shape[1] - 1
    with pytest.raises(ModelError, match=r"model.template: 'enable_thinking' is read nowhere in the chat template of"):
        load_vlm(None, template={"enable_thinking": False})
