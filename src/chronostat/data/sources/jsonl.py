"""JSON Lines: one object per line."""

import json
from collections.abc import Iterator
from pathlib import Path

from chronostat.data.sources.rows import Row
from chronostat.errors import DataError


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a file, one for each line that is not empty.

    Raises:
        DataError: it cannot be read, or a line is no JSON object.
    """
    for number, text in enumerate(_lines(path), start=1):
        if text.strip():
            yield Row(where=f"{path}:{number}", values=_object(path, number, text), base=path.parent, own=True)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # splitlines also splits inside JSON strings
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the data file {path}: {error}; name a file of JSON Lines, or of "
            "another kind that docs/data.md lists, with data.path"
        ) from None


def _object(path: Path, number: int, text: str) -> dict[str, object]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if number == 1 and text.lstrip().startswith("["):
            raise _array(path) from None
        raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
    if isinstance(data, list) and number == 1 and all(isinstance(item, dict) for item in data):
        raise _array(path)
    if not isinstance(data, dict):
        raise DataError(f'{path}:{number}: line: Input should be an object such as {{"id": ...}}, not {text[:40]}')
    return data


def _array(path: Path) -> DataError:
    return DataError(
        f"{path} is one JSON array; write one object per line, which `jq -c '.[]' {path.name} > "
        f"{path.stem}-lines.jsonl` does"
    )
