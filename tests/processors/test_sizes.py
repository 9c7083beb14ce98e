"""The tokens that are told beforehand are those of the prepared batch, for every family and many shapes of pictures."""

import numpy as np
import pytest
import torch
from benchmarks.processors.families import FAMILIES
from PIL import Image

from chronostat.execution.execute import SampleRequest
from chronostat.execution.sizes import RequestSizes
from chronostat.knobs.registry import applied, find_knob
from chronostat.knobs.space import ActionSpace
from chronostat.models.prepare import count_image_tokens, image_token_id, prepare
from chronostat.models.weights import first_difference, state_of, without_memory
from chronostat.records import Setting
from processors.conftest import families, request


def shapes_of(rng, pictures):
    """Widths and heights: 40 x 40 to 1000 x 1000 pixels, up to five times as wide as high, or the reverse."""
    areas = np.exp(rng.uniform(np.log(40**2), np.log(1000**2), pictures))
    aspects = np.exp(rng.uniform(-np.log(5), np.log(5), pictures))
    return [
        (int((area * aspect) ** 0.5), int((area / aspect) ** 0.5)) for area, aspect in zip(areas, aspects, strict=True)
    ]


def blank(shapes):
    return [Image.new("RGB", shape) for shape in shapes]


def prepared(pair, setting, images, prompt):
    """Image tokens and text tokens of the batch itself."""
    with applied(setting, pair.model, pair.processor) as image_arguments:
        batch = prepare(
            pair.processor,
            images,
            prompt,
            device=torch.device("cpu"),
            dtype=torch.float32,
            image_arguments=image_arguments,
        )
    return count_image_tokens(pair.model, batch), int((batch["input_ids"] != image_token_id(pair.model)).sum())


def space_of(pair, refused):
    if refused:
        return ActionSpace({"block_skip": ((),)})
    return ActionSpace({"vision_tokens": find_knob("vision_tokens", pair.model, pair.processor).levels})


@pytest.mark.parametrize("name", families() + families(refused=True))
def test_what_is_told_is_what_is_prepared(pair_of, name):
    pair, rng = pair_of(name), np.random.default_rng(19)
    space = space_of(pair, FAMILIES[name].refused)
    before = without_memory(state_of(pair.model, pair.processor))
    sizes = RequestSizes(pair.model, pair.processor, space)
    assert all(sizes.exact.values())
    several = [] if name.startswith("GOT-OCR") else [2, 4]  # it takes one picture a request
    for pictures in [1] * 8 + several:
        images = blank(shapes_of(rng, pictures))
        made: SampleRequest = request(pair.processor, *images)
        told = sizes(made)
        assert told.shape == (len(space), 2)
        for row, setting in zip(told, space.settings, strict=True):
            shown = Setting() if FAMILIES[name].refused else setting
            assert tuple(row) == prepared(pair, shown, images, made.sample.prompt), (setting, images)
    assert first_difference(before, without_memory(state_of(pair.model, pair.processor))) is None
