"""The value is an upper bound for images of all shapes, counted in what the processor writes."""

import pytest
from benchmarks.processors.families import FAMILIES

from chronostat.knobs.registry import find_knob
from chronostat.models.prepare import count_image_tokens
from chronostat.records import Setting
from processors.conftest import families, picture
from processors.test_families import batch_of

SHAPES = [(64, 64), (900, 600), (300, 1200), (1000, 250), (640, 480), (1500, 1500)]


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_no_image_gives_more_than_the_value(pair_of, name):
    pair = pair_of(name)
    knob = find_knob("vision_tokens", pair.model, pair.processor)
    below = sorted(knob.levels)
    counts = {
        shape: [
            count_image_tokens(pair.model, batch_of(pair, Setting(vision_tokens=value), picture(*shape)))
            for value in below
        ]
        for shape in SHAPES
    }
    for shape, found in counts.items():
        assert all(0 < count <= value for count, value in zip(found, below, strict=True)), shape
        assert found == sorted(found), shape
    if FAMILIES[name].shape_free:
        assert all(found == below for found in counts.values())


@pytest.mark.parametrize("name", ["Qwen2-VL", pytest.param("GLM-4V", marks=pytest.mark.slow)])
@pytest.mark.parametrize("value", [9, 17, 64, 100, 333, 640])
def test_areas_come_close_to_any_number(pair_of, name, value):
    """A side is rounded down to whole tokens, so an image of a rows and b columns lacks at most a + b of the value."""
    pair = pair_of(name)
    count = count_image_tokens(pair.model, batch_of(pair, Setting(vision_tokens=value), picture(900, 600)))
    rows = (value / 1.5) ** 0.5
    assert value - (rows + 1.5 * rows) <= count <= value


@pytest.mark.parametrize("value", [1, 9, 17, 100, 333, 1000])
def test_the_longest_edge_gives_a_square_its_largest_square_number(pair_of, value):
    pair = pair_of("Pixtral")
    side = int(value**0.5)
    count = count_image_tokens(pair.model, batch_of(pair, Setting(vision_tokens=value), picture(1024, 1024)))
    assert count == side * side


@pytest.mark.slow
@pytest.mark.parametrize("value", [64, 100, 255, 256])
def test_a_tiled_processor_reaches_small_numbers_without_tiles(pair_of, value):
    pair = pair_of("LFM2-VL")
    count = count_image_tokens(pair.model, batch_of(pair, Setting(vision_tokens=value), picture(900, 600)))
    rows = (value / 1.5) ** 0.5
    assert value - (rows + 1.5 * rows) <= count <= value
