"""How many tokens a picture will have, by the processor's own arithmetic: nothing is resized.

A processor that says how many placeholders a picture of some size needs (``_get_num_multimodal_tokens``), or into how
many tiles its image processor cuts it (``get_number_of_image_patches``), does not always mean what the language model
reads: marks of start and end are counted as well (InternVL), breaks after rows (Pixtral), or tiles alone. So a few
pictures are prepared once, and that counter is taken, or those two, of which the prepared numbers are a linear
function, exactly and all of them.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from transformers import ProcessorMixin

from chronostat.knobs.vision.own_counts import Counter, Shape, own_counters
from chronostat.knobs.vision.reading import Reader

_NEARLY = 1e-6  # of a token
_REMEMBERED = 4096  # pictures of different shapes


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was prepared: the shapes of a request's pictures, and how many tokens of some sort there were."""

    shapes: tuple[Shape, ...]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """A number of tokens as a linear function of what is counted.

    Attributes:
        counters: each counts every picture.
        weights: tokens for one of what each of them counts, and then for one picture and for the request itself.
        exact: whether the counters are arithmetic, and all that was seen lies on the line.
    """

    counters: tuple[Counter, ...]
    weights: tuple[float, ...]
    exact: bool

    def __call__(self, shapes: Sequence[Shape]) -> int:
        """Tokens of a request with pictures of these shapes."""
        *counted, picture, request = self.weights
        tokens = picture * len(shapes) + request
        for counter, weight in zip(self.counters, counted, strict=True):
            tokens += weight * sum(map(counter, shapes))
        return round(tokens)


class Nearest:
    """A counter that knows some pictures, and takes for any other the tokens of the one nearest in shape.

    Near is what differs little in the logarithms of height and width.

    Args:
        seen: requests, of which those with one picture are known; at least one.
    """

    def __init__(self, seen: Iterable[Seen]) -> None:
        known = {each.shapes[0]: each.tokens for each in seen if len(each.shapes) == 1}
        self._tokens = list(known.values())
        self._logs = np.log(np.array(list(known), dtype=np.float64))  # [known, 2]

    def __call__(self, shape: Shape) -> int:
        """Tokens of a picture."""
        distances = np.abs(self._logs - np.log(np.array(shape, dtype=np.float64))).sum(axis=1)
        return self._tokens[int(distances.argmin())]


def counters_of(processor: ProcessorMixin, image_arguments: Mapping[str, Any]) -> list[Counter]:
    """What can be counted with this processor as it is now and is called with these arguments.

    It is kept as it is now: what a setting changes on it may be undone afterwards. The last one counts nothing.
    """
    kept: Any = copy.copy(processor)
    kept.image_processor = copy.copy(getattr(kept, "image_processor", None))
    merged: dict[str, dict[str, Any]] = kept._merge_kwargs(kept.valid_processor_kwargs)
    merged["images_kwargs"] = _with_areas({**merged["images_kwargs"], **image_arguments})
    kept.images_kwargs = merged["images_kwargs"]

    def merged_already(*_: object, **__: object) -> Any:  # noqa: ANN401 - merging anew takes most of the time
        return merged

    kept._merge_kwargs = merged_already
    kinds = (own_counters(Reader(kept)), _tiles(kept), _placeholders(kept))
    own, tiles, placeholders = ([lru_cache(_REMEMBERED)(counter) for counter in kind] for kind in kinds)
    beside = [_difference(one, other) for one in placeholders for other in tiles]
    return [*own, *tiles, *placeholders, *beside, lambda _: 0]


def fitted(counters: Sequence[Counter], seen: Sequence[Seen]) -> Line | None:
    """The line of the simplest law on which all lies that was seen; None if there is none.

    In this order: so many tokens for one of what is counted; so many for each picture and request; both; and both with
    two counters. Among equal ones the first counter is taken.
    """
    alone = [(counter,) for counter in counters]
    laws = [
        *((each, (0,)) for each in alone),
        *((each, (1, 2)) for each in alone),
        *((each, (0, 1, 2)) for each in alone),
    ]
    for chosen, terms in [*laws, *((pair, (0, 1, 2, 3)) for pair in combinations(counters, 2))]:
        line = _line(chosen, seen, terms)
        if line.exact:
            return line
    return None


def approximate(seen: Sequence[Seen]) -> Line:
    """The line on which all lies best by the nearest pictures."""
    return replace(_line((Nearest(seen),), seen, (0, 1, 2)), exact=False)


def _line(counters: tuple[Counter, ...], seen: Sequence[Seen], terms: tuple[int, ...]) -> Line:
    """The best line by least squares of which these terms are not 0."""
    counted = [[sum(map(counter, each.shapes)) for counter in counters] for each in seen]
    rows = np.array([[*row, len(each.shapes), 1] for row, each in zip(counted, seen, strict=True)], dtype=np.float64)
    tokens = np.array([each.tokens for each in seen], dtype=np.float64)
    weights = np.zeros(rows.shape[1])
    weights[list(terms)] = np.linalg.lstsq(rows[:, terms], tokens, rcond=None)[0]
    exact = bool(np.abs(rows @ weights - tokens).max() < _NEARLY)
    return Line(counters=counters, weights=tuple(weights.tolist()), exact=exact)


def _with_areas(images_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with areas by their older names too: Qwen's arithmetic reads those alone."""
    size = images_kwargs.get("size")
    if not isinstance(size, Mapping) or not {"shortest_edge", "longest_edge"} <= size.keys():
        return images_kwargs
    return {**images_kwargs, "min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}


def _placeholders(processor: Any) -> list[Counter]:  # noqa: ANN401 - any processor
    """What the processor itself says. Given arguments, some versions would keep them for all calls to come."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    return [] if count is None else [lambda shape: count(image_sizes=[list(shape)])["num_image_tokens"][0]]


def _tiles(processor: Any) -> list[Counter]:  # noqa: ANN401 - as above
    """Tiles by the image processor; some say rows and columns too, and no tile for a picture that stays whole."""
    count = getattr(processor.image_processor, "get_number_of_image_patches", None)
    if count is None:
        return []

    def tiles(shape: Shape) -> int:
        said = count(*shape, processor.images_kwargs)
        return max(1, said[0] if isinstance(said, tuple) else said)

    return [tiles]


def _difference(one: Counter, other: Counter) -> Counter:
    """Molmo 2: placeholders with the marks around them, less those without."""
    return lambda shape: one(shape) - other(shape)
