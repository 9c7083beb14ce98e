"""Results that are kept cell by cell, so that a long benchmark can go on where it stopped."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel

from benchmarks.kit.results import RESULTS
from chronostat.errors import UnlikeConditions
from chronostat.execution.conditions import read_conditions
from chronostat.records import Conditions

Cell = dict[str, Any]
_SAVE_EVERY_S = 5.0


class CellFile:
    """``NAME.json`` with one entry for each cell, its conditions and commit in it; written aside and renamed.

    Args:
        name: of the benchmark.
        folder: where it is written. What is not there yet is taken over from ``benchmarks/results``.
        commit_name: the commit of the code that runs.
    """

    def __init__(self, name: str, folder: Path, commit_name: str) -> None:
        self._name = name
        self._path = folder / f"{name}.json"
        self._commit = commit_name
        self._saved_s = perf_counter()
        earlier = next((path for path in (self._path, RESULTS / f"{name}.json") if path.is_file()), None)
        read = json.loads(earlier.read_text(encoding="utf-8")) if earlier else {}
        self.cells: dict[str, Cell] = read.get("cells", {})

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    def open(self, key: str, model: PreTrainedModel, **metadata: Any) -> Cell:  # noqa: ANN401 - plain data
        """A cell to go on with: the earlier one if it was measured under like conditions with like facts, or a new one.

        Unlike conditions are not mixed: such a cell is begun again, and this is said; what there was is kept beside it.
        That the last attempt at a cell failed is forgotten.
        """
        conditions = asdict(read_conditions(model))
        earlier = self.cells.get(key)
        if earlier is not None:
            differs = _difference(earlier.get("conditions", {}), conditions) or _other_metadata(earlier, metadata)
            if not differs:
                earlier.pop("failed", None)
                return earlier
            print(f"{key}: begun again, the earlier part differs ({differs})", flush=True)
            if earlier.get("rows"):
                self.cells[next(name for name in earlier_names(key) if name not in self.cells)] = earlier
        self.cells[key] = {"commit": self._commit, "conditions": conditions, **metadata}
        return self.cells[key]

    def fail(self, key: str, error: Exception) -> None:
        """Write down why the attempt at a cell failed."""
        self.cells.setdefault(key, {})["failed"] = f"{type(error).__name__}: {error}"
        self.save()

    def save(self, *, now: bool = True) -> None:
        """Write the file; with ``now=False`` only if the last time is some seconds ago."""
        if not now and perf_counter() - self._saved_s < _SAVE_EVERY_S:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".part")
        aside.write_text(json.dumps({"benchmark": self._name, "cells": _short(self.cells)}, indent=None) + "\n")
        aside.replace(self._path)
        self._saved_s = perf_counter()


def earlier_names(key: str) -> Iterator[str]:
    """What a cell is called that was begun again under other conditions: "(earlier)", "(earlier 2)" and so on."""
    yield f"{key} (earlier)"
    yield from (f"{key} (earlier {number})" for number in itertools.count(2))


def without_earlier(key: str) -> str:
    """The name of the cell that was begun again."""
    return re.sub(r" \(earlier( \d+)?\)$", "", key)


def _difference(stored: dict[str, Any], now: dict[str, Any]) -> str | None:
    try:
        Conditions(**stored).require_comparable(Conditions(**now))
    except UnlikeConditions as error:
        return str(error)
    except TypeError:
        return "its conditions have other fields"
    return None


def _other_metadata(cell: Cell, metadata: dict[str, Any]) -> str | None:
    return next(
        (f"{name}: {cell.get(name)} != {value}" for name, value in metadata.items() if cell.get(name) != value), None
    )


def _short(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Plain data with numbers of five decimals (10 ns for milliseconds)."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
