"""A row: what a file says of one sample, and where it says so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from chronostat.data.images import ImageSource


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a source.

    Attributes:
        where: file and line, or file and row, for messages.
        values: by name of the column.
        base: where relative paths begin.
        own: it is written in our own keys, of which an unknown one is a mistake; other files may hold more.
    """

    where: str
    values: Mapping[str, object]
    base: Path
    own: bool = False

    def of_others(self) -> "Row":
        """The same in the names of another layout."""
        return replace(self, own=False)

    def with_split(self, name: str) -> "Row":
        """The same in a split that its file or folder is named after, unless the row names one itself."""
        return self if self.values.get("split") else replace(self, values={**self.values, "split": name})


class Pictures:
    """The images of one cell, each read when it is asked for.

    Args:
        name: of the cell, for messages.
        fetch: reads the cell: bytes, a struct of ``bytes`` and ``path``, a list of either, or nothing.
    """

    def __init__(self, name: str, fetch: Callable[[], Any]) -> None:
        self._name, self._fetch = name, fetch

    def sources(self, base: Path) -> list[ImageSource]:
        """One for each image; a struct without bytes names a file, relative to ``base``."""
        cell = self._fetch()
        if isinstance(cell, list):
            return [self._source(held, place, base) for place, held in enumerate(cell)]
        return [] if _is_empty(cell) else [self._source(cell, None, base)]

    def _source(self, held: Any, place: int | None, base: Path) -> ImageSource:  # noqa: ANN401 - bytes or a struct
        if isinstance(held, Mapping) and held.get("bytes") is None:
            file = base / str(held.get("path"))
            return ImageSource(str(file), lambda: file)
        return ImageSource(self._name, partial(_bytes_of, self._fetch, place))


def _is_empty(cell: Any) -> bool:  # noqa: ANN401 - bytes or a struct
    return cell is None or (isinstance(cell, Mapping) and cell.get("bytes") is None and not cell.get("path"))


def _bytes_of(fetch: Callable[[], Any], place: int | None) -> bytes:
    cell = fetch()
    held = cell if place is None else cell[place]
    return held["bytes"] if isinstance(held, Mapping) else held


def shown(value: object, most: int = 60) -> str:
    """A value in a message: short, on one line, whatever it is."""
    text = repr(value if not isinstance(value, str) else value[: 2 * most])
    return text if len(text) <= most else f"{text[: most - 12]}... ({len(str(value)):,} characters)"
