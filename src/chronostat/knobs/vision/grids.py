"""LLaVA-NeXT and LLaVA-OneVision: the grids that an image may be cut into, on the processor and in the model."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from math import isqrt
from typing import Any

from transformers import PreTrainedModel

from chronostat.knobs.vision.mechanism import Mechanism, steps
from chronostat.knobs.vision.reading import Reader

_NAME = "image_grid_pinpoints"
_SHRINKS_ABOVE = Fraction("1.1") ** 2  # of the limit of anyres_max: a larger grid of features is shrunk to the limit


def grid_pinpoints(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """Only grids of at most n tiles stay, of those that the checkpoint has.

    The processor reads them from its image processor and the model from its configuration, so an argument of the call
    changes the pixels alone. Both are set, and set back.
    """
    pinpoints = reader.default(_NAME)
    configs = _configs(model)
    side = reader.edge("height", "crop_size") or reader.edge("height") or reader.edge("shortest_edge")
    if not pinpoints or not configs or side is None:
        return None
    counted = {_tiles(pinpoint, side): 0 for pinpoint in sorted(pinpoints, key=lambda each: _tiles(each, side))}
    for pinpoint in pinpoints:
        tokens = _most_tokens(reader, pinpoint, side)
        if tokens is None:
            return None
        for tiles in counted:
            if tiles >= _tiles(pinpoint, side):
                counted[tiles] = max(counted[tiles], tokens)
    tokens_by_tiles = {tiles: count for count, tiles in {count: tiles for tiles, count in counted.items()}.items()}

    @contextmanager
    def around(_: PreTrainedModel, tiles: int) -> Generator[None]:
        kept = [pinpoint for pinpoint in pinpoints if _tiles(pinpoint, side) <= tiles]
        with ExitStack() as stack:
            for owner in (reader.image_processor, *configs):
                before = getattr(owner, _NAME)
                stack.callback(setattr, owner, _NAME, before)
                setattr(owner, _NAME, kept)
            yield

    return steps(
        says=f"{_NAME} of {reader.owner} and of the model's configuration",
        full=counted[max(counted)],
        tokens=tokens_by_tiles,
        arguments=lambda _: {},
        around=around,
        usual=_limit_tiles(reader),
    )


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configurations in the model that hold the grids, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, _NAME, None):
            found[id(config)] = config
    return list(found.values())


def _tiles(pinpoint: Sequence[int], side: int) -> int:
    height, width = pinpoint
    return (height // side) * (width // side)


def _most_tokens(reader: Reader, pinpoint: Sequence[int], side: int) -> int | None:
    """Image tokens of an image that fills a grid, or nearly so; None where the processor counts in another way.

    The grid of features with one token at the end of each row, and those of the whole image. With ``anyres_max_k`` more
    features than 1.21 times those of k tiles are shrunk to k tiles', so the most are just that.
    """
    patches = _patches_along(reader, side)
    if patches is None:
        return None
    height, width = pinpoint
    rows, columns = patches * (height // side), patches * (width // side)
    tiles = _limit_tiles(reader)
    limit = None if tiles is None else tiles * patches**2
    base = patches**2 + (reader.option("num_additional_image_tokens") or 0)
    shrunk = limit is not None and rows * columns > _SHRINKS_ABOVE * limit
    if not shrunk and _own_count(reader, pinpoint, side) != rows * columns + rows + base:
        return None
    features = int(_SHRINKS_ABOVE * limit) if shrunk and limit is not None else rows * columns
    return features + rows + base - (reader.option("vision_feature_select_strategy") == "default")


def _patches_along(reader: Reader, side: int) -> int | None:
    """Features along the side of one tile."""
    whole = reader.option("num_image_tokens")
    if type(whole) is int:
        return isqrt(whole)
    patch = reader.option("patch_size")
    if type(patch) is not int:
        return None
    rate = reader.option("downsample_rate")
    return side // patch if rate is None else int(side // patch * Fraction(rate))


def _limit_tiles(reader: Reader) -> int | None:
    """Tiles whose features are the most that a larger grid is shrunk to."""
    aspect = reader.option("vision_aspect_ratio")
    if not isinstance(aspect, str) or not aspect.startswith("anyres_max_"):
        return None
    return int(aspect.removeprefix("anyres_max_"))


def _own_count(reader: Reader, pinpoint: Sequence[int], side: int) -> int | None:
    """What the processor itself says of an image that fills a grid."""
    count = getattr(reader.processor, "_get_number_of_features", None)
    return None if count is None else int(count(*pinpoint, side, side))
