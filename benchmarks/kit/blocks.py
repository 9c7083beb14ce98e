"""Block by block inside a cell: rows as far as the time goes, arms in an order drawn for each block."""

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.kit.cells import Cell, CellFile
from chronostat.errors import MeasurementError

Row = dict[str, Any]


class TimeBox:
    """So many seconds from now; None: no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end_s = None if seconds is None else perf_counter() + seconds

    def left_s(self) -> float:
        """Seconds left, at least 0."""
        return float("inf") if self._end_s is None else max(0.0, self._end_s - perf_counter())

    def allows(self, seconds: float) -> bool:
        """Whether so much can still be begun."""
        return self.left_s() >= seconds


def fill_rows(cell: Cell, most: int, box: TimeBox, file: CellFile, block: Callable[[int], Row | None]) -> bool:
    """Add a block after the other to the cell's rows, up to ``most`` or as far as the time goes.

    Args:
        cell: gets ``rows``.
        most: rows in all.
        box: the time.
        file: is saved now and then, and at the end.
        block: makes the next row from the number of rows that there are, or None: this block is no row.

    Returns:
        Whether there are ``most`` rows.
    """
    rows: list[Row] = cell.setdefault("rows", [])
    longest_s = 0.0
    while len(rows) < most and box.allows(1.2 * longest_s):
        started_s = perf_counter()
        row = block(len(rows))
        if row is not None:
            rows.append(row)
        longest_s = max(longest_s, perf_counter() - started_s)
        file.save(now=False)
    file.save()
    return len(rows) >= most


def dropping(cell: Cell, most: int, block: Callable[[int], Row]) -> Callable[[int], Row | None]:
    """A block in which one call could not be measured is no row: it is kept under ``dropped`` with the reason.

    Args:
        cell: gets ``dropped``.
        most: blocks that may be dropped; one more raises its ``MeasurementError``.
        block: makes a row from the number of blocks that were tried.
    """
    dropped: list[str] = cell.setdefault("dropped", [])

    def row_or_none(index: int) -> Row | None:
        try:
            return block(index + len(dropped))
        except MeasurementError as error:
            dropped.append(str(error))
            if len(dropped) > most:
                raise
            return None

    return row_or_none


def shuffled(arms: Iterable[str], *seed: int) -> list[str]:
    """The arms of one block in random order, the same for the same seed."""
    return [str(arm) for arm in np.random.default_rng(seed).permutation(list(arms))]
