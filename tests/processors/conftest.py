"""Each family's processor and model are built once; pictures of noise in some shapes."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from benchmarks.processors.families import FAMILIES
from PIL import Image

from chronostat.data.samples import Sample
from chronostat.execution.execute import SampleRequest

_OF_THE_LIBRARY = [  # its own use of numpy, and arguments that it renamed
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",
    "ignore:__array_wrap__ must accept context:DeprecationWarning",
    "ignore:`hidden_state` is deprecated:FutureWarning",
]
FAST = {"Qwen2-VL", "Pixtral", "Mllama", "LLaVA-NeXT (336 px)", "LLaVA 1.5 (336 px)", "PaliGemma"}


def families(*, refused=False):
    """Parameters: the names of the families that have the knob, or that do not."""
    return [
        pytest.param(name, marks=() if name in FAST else (pytest.mark.slow,))
        for name, family in FAMILIES.items()
        if family.refused == refused
    ]


@cache
def _pair(name):
    try:
        return FAMILIES[name].build()
    except AttributeError as error:  # younger than the oldest transformers that is supported
        if "module transformers has no attribute" not in str(error):
            raise
        return pytest.skip(str(error))


@pytest.fixture(scope="session")
def pair_of():
    yield _pair
    _pair.cache_clear()


def picture(width, height):
    noise = np.random.default_rng(width * 10_000 + height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def request(processor, *images):
    sample = Sample(id="a", split="train", prompt="a b c", references=(), load_images=lambda: images)
    return SampleRequest(sample=sample, images=images, processor=processor, quality=None)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in _OF_THE_LIBRARY:
                item.add_marker(pytest.mark.filterwarnings(warning))
