"""Counts of processors that say nothing themselves, or not what is needed: how their image processors cut a picture.

Nothing here is trusted as such: what is counted is compared with prepared pictures (``counting.py``) and left aside
where it disagrees.
"""

from collections.abc import Callable
from itertools import product
from math import ceil
from typing import Any

import numpy as np

from chronostat.knobs.vision.reading import Reader

Shape = tuple[int, int]
"""Height and width of a picture in pixels."""

Counter = Callable[[Shape], float]
"""What is counted of a picture, whatever it is."""


def own_counters(reader: Reader) -> list[Counter]:
    """The counters that fit this kind of processor."""
    return [counter for kind in (_grid, _chunks, _crops, _tiles_or_whole) for counter in kind(reader)]


def _grid(reader: Reader) -> list[Counter]:
    """Pixtral and Mistral 3: the patches of a picture, and its rows, each of which ends with a break.

    Their own arithmetic gives the sum of both, and makes an array of the picture's size for it.
    """
    patch, merge = (getattr(reader.processor, name, None) for name in ("patch_size", "spatial_merge_size"))
    longest = reader.edge("longest_edge")
    if type(patch) is not int or type(merge) is not int or longest is None:
        return []
    side = patch * merge

    def grid(shape: Shape) -> tuple[int, int]:
        shrunk = max(1.0, *(pixels / longest for pixels in shape))
        rows, columns = (ceil(int(pixels / shrunk) / side) for pixels in shape)
        return rows, columns

    return [lambda shape: grid(shape)[0] * grid(shape)[1], lambda shape: grid(shape)[0]]


def _chunks(reader: Reader) -> list[Counter]:
    """Llama 4: the canvas of whole tiles that a picture fits with the least scaling up, else with the least down.

    Of equal ones the smallest is taken; more than one tile have the whole beside them.
    """
    most, side, largest = reader.count("max_patches"), reader.edge("height"), reader.default("resize_to_max_canvas")
    if most is None or side is None or largest is None:
        return []
    shapes = [(a, b) for a, b in product(range(1, most + 1), repeat=2) if a * b <= most]
    canvases = np.array(sorted(shapes, key=lambda shape: shape[0] * shape[1])) * side  # [canvases, 2] pixels

    def tiles(shape: Shape) -> int:
        scales = (canvases / shape).min(axis=1)
        enlarging = scales[scales >= 1]
        taken = scales.max() if largest or not len(enlarging) else enlarging.min()
        count = int(canvases[int((scales == taken).argmax())].prod()) // side**2
        return count + (count > 1)

    return [tiles]


def _crops(reader: Reader) -> list[Counter]:
    """Gemma 3: a long picture is cut along its longer side, and the whole is beside the crops."""
    name = "pan_and_scan"
    names = [f"{name}_{rest}" for rest in ("max_num_crops", "min_crop_size", "min_ratio_to_activate")]
    most, smallest, longer_than = (reader.default(each) for each in names)
    if most is None or smallest is None or longer_than is None or not reader.default("do_pan_and_scan"):
        return []

    def pictures(shape: Shape) -> int:
        long, short = max(shape), min(shape)
        if long / short < longer_than:
            return 1
        crops = min(most, max(2, min(int(long / short + 0.5), long // smallest)))
        return 1 if min(ceil(long / crops), short) < smallest else crops + 1

    return [pictures, lambda shape: pictures(shape) > 1]


def _tiles_or_whole(reader: Reader) -> list[Counter]:
    """LFM2-VL: a large picture in tiles, each of the same tokens, beside the whole; a small one only that.

    Then the tiles, and whether there are any: both have marks.
    """
    processor, ip = reader.processor, reader.image_processor
    if not all(hasattr(ip, method) for method in ("_is_image_too_large", "_get_grid_layout", "smart_resize")):
        return []

    def given(*names: str) -> dict[str, Any]:
        return {name: reader.default(name) for name in names}

    scaling = given("downsample_factor", "min_image_tokens", "max_image_tokens", "encoder_patch_size")
    large = given("downsample_factor", "max_image_tokens", "encoder_patch_size", "max_pixels_tolerance")
    layout = given("min_tiles", "max_tiles", "tile_size")
    cuts, has_whole = reader.default("do_image_splitting"), reader.default("use_thumbnail")

    def tiles(shape: Shape) -> int:
        height, width = shape
        if not cuts or not ip._is_image_too_large(height=height, width=width, **large):
            return 0
        return ip._get_grid_layout(height, width, **layout)[-1]

    def tokens(shape: Shape) -> int:
        width, height = ip.smart_resize(height=shape[0], width=shape[1], **scaling)
        in_tile, in_whole = processor._get_image_num_tokens([height, width])
        cut = tiles(shape)
        return cut * in_tile + (in_whole if has_whole or not cut else 0)

    return [tokens, tiles, lambda shape: tiles(shape) > 0]
