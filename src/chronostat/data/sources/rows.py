"""A row: what a file says of one sample, and where it says so."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path


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

    def with_split(self, name: str | None) -> "Row":
        """The same in a split that its file or folder is named after, or in none, unless the row names one itself."""
        return self if self.values.get("split") else replace(self, values={**self.values, "split": name})


def shown(value: object, most: int = 60) -> str:
    """A value in a message: short, on one line, whatever it is."""
    text = repr(value if not isinstance(value, str) else value[: 2 * most])
    return text if len(text) <= most else f"{text[: most - 12]}... ({len(str(value)):,} characters)"
