import pytest
import torch

from chronostat.errors import DataError
from chronostat.models.prepare import image_token_id, prepare


def prepared(bundled, images, dtype=torch.float32, **image_arguments):
    return prepare(
        bundled.processor,
        images,
        "What color is the background?",
        device=torch.device("cpu"),
        dtype=dtype,
        image_arguments=image_arguments,
    )


def placeholders(bundled, batch):
    return int((batch["input_ids"] == image_token_id(bundled.model)).sum())


def test_a_batch_as_generate_takes_it(bundled, demo_sample):
    batch = prepared(bundled, demo_sample.load_images())
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[0] == 1
    assert batch["pixel_values"].shape == (17, 3, 32, 32)  # 16 tiles and the thumbnail
    assert placeholders(bundled, batch) == 17 * 16


@pytest.mark.parametrize(("most_tiles", "tiles"), [(1, 1), (4, 5), (9, 10)])
def test_image_arguments_reach_the_image_processor(bundled, demo_sample, most_tiles, tiles):
    batch = prepared(bundled, demo_sample.load_images(), max_patches=most_tiles)
    assert batch["pixel_values"].shape[0] == tiles
    assert placeholders(bundled, batch) == 16 * tiles


def test_pixels_have_the_models_type_and_ids_stay_whole_numbers(bundled, demo_sample):
    batch = prepared(bundled, demo_sample.load_images(), dtype=torch.bfloat16)
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert batch["input_ids"].dtype == torch.long


def test_text_alone(bundled):
    batch = prepared(bundled, ())
    assert "pixel_values" not in batch
    assert placeholders(bundled, batch) == 0


def test_images_stand_in_their_order_before_the_prompt(bundled, demo_sample):
    one = demo_sample.load_images()[0]
    other = one.rotate(180)
    both = prepared(bundled, (one, other), max_patches=1)
    assert torch.equal(both["pixel_values"][:1], prepared(bundled, (one,), max_patches=1)["pixel_values"])
    assert torch.equal(both["pixel_values"][1:], prepared(bundled, (other,), max_patches=1)["pixel_values"])


def test_a_processor_without_chat_template_is_refused(bundled, monkeypatch):
    monkeypatch.setattr(bundled.processor, "chat_template", None)
    with pytest.raises(DataError, match="InternVLProcessor has no chat template"):
        prepared(bundled, ())


def test_no_image_token_in_the_config():
    assert image_token_id(torch.nn.Linear(1, 1)) is None
