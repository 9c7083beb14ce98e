"""``RequestSizes``: how big a request is under each setting, told without preparing it."""

import numpy as np
import pytest
from PIL import Image

from chronostat.data.demo import DemoTask
from chronostat.data.samples import Sample
from chronostat.errors import DataError
from chronostat.execution.execute import BatchRequest, SampleRequest, execute, request_for
from chronostat.execution.sizes import RequestSizes
from chronostat.knobs.space import ActionSpace
from chronostat.records import Setting
from zoo.build import build

LEVELS = (272, 160, 80, 16)
SPACE = ActionSpace({"vision_tokens": LEVELS, "block_skip": ((), (3, 4))})


def request_of(processor, *shapes, prompt="What is it?"):
    images = tuple(Image.new("RGB", shape) for shape in shapes)
    sample = Sample(id="a", split="train", prompt=prompt, references=(), load_images=lambda: images)
    return SampleRequest(sample=sample, images=images, processor=processor, quality=None)


@pytest.fixture(scope="module")
def sizes(bundled):
    return RequestSizes(bundled.model, bundled.processor, SPACE)


def test_by_hand(bundled, sizes):
    """Tiles of 16 tokens. Full allows 16 and the whole: a square has all, one three times as wide as high 5 x 2 or so.

    Five tokens a prompt of five words; the template has two of its own and two around each picture.
    """
    square = sizes(request_of(bundled.processor, (128, 128), prompt="Count the shapes."))
    assert square[::2, 0].tolist() == [16 * 17, 16 * 10, 16 * 5, 16]  # 4 x 4, 3 x 3 and 2 x 2 tiles and the whole; one
    assert np.array_equal(square[::2], square[1::2])  # what another knob does changes no tokens
    both = sizes(request_of(bundled.processor, (128, 128), (128, 128), prompt="Count the shapes."))
    assert np.array_equal(both[:, 0], 2 * square[:, 0])
    assert np.array_equal(both[:, 1], square[:, 1] + 2)


def test_told_is_what_executing_reads(bundled, sizes):
    for sample in DemoTask().split("test")[:6]:
        request = request_for(sample, bundled.processor, None)
        told = sizes(request)
        for setting in SPACE.settings[::3]:
            execution = execute(bundled.model, request, setting=setting, max_new_tokens=1)
            image, text = told[SPACE.index(setting)]
            assert (image, text) == (execution.image_tokens, execution.prompt_tokens - execution.image_tokens)


def test_a_request_is_counted_once_and_its_answer_is_its_own(bundled, sizes):
    request = request_of(bundled.processor, (60, 120))
    first = sizes(request)
    expected = first.copy()
    first[:] = -1
    assert np.array_equal(sizes(request), expected)


def test_a_ready_batch_says_what_it_holds(bundled, sizes):
    zoo = build("llava")
    told = RequestSizes(zoo.model, None, ActionSpace({"block_skip": ((), (1,))}))(BatchRequest(batch=zoo.batch, id="b"))
    placeholders = int((zoo.batch["input_ids"] == zoo.model.config.image_token_id).sum())
    text = zoo.batch["input_ids"].shape[1] - placeholders
    assert told.tolist() == [[placeholders, text]] * 2
    assert placeholders > 0


def test_a_sample_needs_the_processor(bundled):
    sizes = RequestSizes(bundled.model, None, ActionSpace({"block_skip": ((), (1,))}))
    with pytest.raises(DataError, match="sample a needs its processor: make RequestSizes with it"):
        sizes(request_of(bundled.processor, (10, 10)))


def test_a_batch_that_does_not_say_is_unknown():
    zoo = build("blip")
    told = RequestSizes(zoo.model, None, ActionSpace({"block_skip": ((), (1,))}))(BatchRequest(batch={}, id="b"))
    assert np.isnan(told).all()


def test_arithmetic_that_disagrees_is_left_aside_and_executions_teach(bundled, monkeypatch):
    """A processor that says nonsense: a picture has the tokens of the nearest one that was prepared, or executed."""
    owner = bundled.processor.image_processor
    monkeypatch.setattr(owner, "get_number_of_image_patches", lambda height, width, _: height * width % 7)
    sizes = RequestSizes(bundled.model, bundled.processor, SPACE)
    assert sizes.exact == {272: False, 160: False, 80: False, 16: True}  # that of one tile is the same for all
    known = request_of(bundled.processor, (640, 480))
    counted = {
        value: execute(bundled.model, known, setting=Setting(vision_tokens=value), max_new_tokens=1).image_tokens
        for value in LEVELS
    }
    assert sizes(known)[::2, 0].tolist() == list(counted.values())
    assert sizes(request_of(bundled.processor, (650, 480)))[0, 0] == counted[272]


def test_a_knob_that_keeps_fewer_tokens_is_counted(bundled):
    """272 tokens of which a quarter goes on, and 64 of them: by what the knob says, without executing anything."""
    space = ActionSpace({"image_keep": [1.0, "pool:0.25", "stride:64"]})
    request = request_of(bundled.processor, (128, 128))
    assert RequestSizes(bundled.model, bundled.processor, space)(request)[:, 0].tolist() == [272, 68, 64]
