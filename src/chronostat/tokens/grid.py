"""Where the tokens of a picture lie, and how a grid of them is cut into cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isqrt, sqrt
from typing import Any

from torch import Tensor

Size = tuple[int, int]  # height and width


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Neighbouring tokens of one picture, as positions in its order.

    Attributes:
        tokens: all of them.
        middle: the one in the middle.
    """

    tokens: tuple[int, ...]
    middle: int


def cells(grid: tuple[int, int], count: int) -> list[Cell]:
    """A grid cut into ``count`` cells of nearly equal size: bands of rows, and each band into cells side by side.

    Every token lies in one cell. Where ``count`` is no product, some bands have one cell more than others.
    """
    rows, columns = grid
    bands = min(rows, max(1, round(sqrt(count * rows / columns)), ceil(count / columns)), count)
    found: list[Cell] = []
    for band in range(bands):
        top, bottom = band * rows // bands, (band + 1) * rows // bands
        across = (band + 1) * count // bands - band * count // bands
        for cell in range(across):
            left, right = cell * columns // across, (cell + 1) * columns // across
            found.append(
                Cell(
                    tokens=tuple(row * columns + column for row in range(top, bottom) for column in range(left, right)),
                    middle=(top + bottom - 1) // 2 * columns + (left + right - 1) // 2,
                )
            )
    return found


def sizes_of(arguments: Mapping[str, Any]) -> list[list[Size]]:
    """Height and width of each picture in any unit, as far as the processor handed them over, by table.

    They are the last two entries of a table of whole numbers with one row for each picture (``image_grid_thw``,
    ``image_sizes``, ``spatial_shapes``).
    """
    return [
        [(row[-2], row[-1]) for row in value.tolist()]
        for value in arguments.values()
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] in {2, 3} and not value.is_floating_point()
    ]


def grid_of(tokens: int, size: Size | None) -> tuple[int, int]:
    """Rows and columns of a picture of so many tokens.

    Of the picture's own shape where whole squares of it are a token each, else a square; else, as where a row ends with
    a token of its own, one row.
    """
    if size is not None:
        height, width = size
        rows = isqrt(tokens * height // width) if width else 0
        for candidate in (rows, rows + 1):
            if candidate and tokens % candidate == 0 and height * (tokens // candidate) == width * candidate:
                return candidate, tokens // candidate
    side = isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)
