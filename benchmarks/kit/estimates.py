"""Estimates with their intervals from pairs, and as text in tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from chronostat.compare.statistics import median_interval
from chronostat.records import Estimate


def ratio_interval(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Median of the paired ratios a / b with its distribution-free 95 % interval; NaN bounds below 6 pairs.

    Args:
        a: numerators, shape [N].
        b: denominators of the same pairs, all positive, shape [N].
    """
    return median_interval((np.asarray(a, dtype=np.float64) / np.asarray(b, dtype=np.float64)).tolist())


def row_ratio(rows: Sequence[Mapping[str, Any]], over: str, under: str, *, digits: int = 3) -> str:
    """``ratio_interval`` of two values of each row, as text.

    Args:
        rows: of a cell.
        over: path of the numerators, see ``value_at``.
        under: path of the denominators.
        digits: after the point.
    """
    a, b = ([value_at(row, path) for row in rows] for path in (over, under))
    return format_estimate(ratio_interval(a, b), digits=digits)


def value_at(row: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401 - plain data
    """What a row holds under a path of names with points between them, such as ``timing.total_ms``."""
    value: Any = row
    for name in path.split("."):
        value = value[name]
    return value


def format_estimate(estimate: Estimate, *, digits: int = 3, scale: float = 1.0) -> str:
    """``point [low, high]``; ``scale`` 100 turns shares into points."""
    point, low, high = (f"{scale * value:.{digits}f}" for value in (estimate.point, estimate.low, estimate.high))
    return f"{point} [{low}, {high}]"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
