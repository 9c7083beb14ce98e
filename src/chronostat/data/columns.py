"""A row in our names: which column is which field, and what other layouts write into it."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from chronostat.data.sources.columnar import Pictures
from chronostat.data.sources.rows import Row
from chronostat.errors import DataError
from chronostat.scorers.choices import letter_of

# by which names other layouts call our fields; the first that a file has is read
_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "index", "question_id", "questionId"),
    "image": ("image", "images", "file_name", "image_path"),
    "prompt": ("prompt", "question"),
    "answers": ("answers", "answer"),
    "split": ("split",),
    "kind": ("kind", "category"),
    "system": ("system",),
    "messages": ("messages",),
    "options": ("options", "choices"),
    "hint": ("hint",),
}
FIELDS = tuple(_NAMES)
MOST_OPTIONS = 10
_LETTERS = [letter_of(place) for place in range(MOST_OPTIONS)]
_SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}


def named(row: Row, number: int, columns: Mapping[str, str]) -> dict[str, Any]:
    """The values of a row by field, those of other layouts in our kinds.

    Args:
        row: of a source.
        number: of the row, the id of a row of another layout without one.
        columns: names of columns by field; an empty name leaves the field out.

    Raises:
        DataError: ``columns`` names a column that is not there, or a field other than ``image`` holds bytes.
    """
    given = dict(row.values)
    for field, column in columns.items():
        if column and column not in given:
            raise DataError(
                f"{row.where}: data.columns says that {field} is the column {column!r}, which is not there; there are "
                f"{', '.join(map(str, given))}"
            )
    if row.own and not columns:
        return _of_own(given)
    names = {field: name for field in FIELDS if (name := _column(field, given, columns)) in given}
    for field, name in names.items():
        if field != "image" and isinstance(given[name], Pictures):
            raise DataError(
                f"{row.where}: {field}: the column {name!r} holds bytes, and a text or a number is wanted; name another"
                f' one in data.columns, or leave the field out with {field} = ""'
            )
    values = {field: given[name] for field, name in names.items() if not _is_empty(given[name])}
    left_out = columns.get("options") == ""
    return _of_others(values, {} if left_out else given, number)


def _column(field: str, given: Mapping[str, object], columns: Mapping[str, str]) -> str | None:
    if field in columns:
        return columns[field] or None
    return next((name for name in _NAMES[field] if name in given), None)


def _of_own(values: dict[str, Any]) -> dict[str, Any]:
    """Our own keys, in which the answer objects of VQA v2 and options by letter may stand too."""
    if isinstance(values.get("answers"), list):
        values["answers"] = [_unwrapped(each) for each in values["answers"]]
    if isinstance(values.get("options"), Mapping):
        values["options"] = list(values["options"].values())
    return values


def _of_others(values: dict[str, Any], lettered: Mapping[str, object], number: int) -> dict[str, Any]:
    """Values as other layouts write them, in our kinds.

    Args:
        values: by field; what is empty is absent.
        lettered: where options may stand in columns A, B, ...
        number: of the row.
    """
    values["id"] = str(values.get("id", number))
    if "options" in values:
        values["options"] = _options(parsed(values["options"])) or None
    elif len(texts := _options([lettered.get(letter) for letter in _LETTERS])) > 1:
        values["options"] = texts
    if "answers" in values:
        values["answers"] = _answers(parsed(values["answers"]), values.get("options") or ())
    if "split" in values:
        values["split"] = _SPLITS.get(str(values["split"]), values["split"])
    if "messages" in values:
        values["messages"] = parsed(values["messages"])
    return values | {key: str(values[key]) for key in ("kind", "prompt", "hint") if key in values}


def _options(value: Any) -> Any:  # noqa: ANN401 - what is no list is refused when it is validated
    """The texts of a list, or of an object by letter, up to the last that is not empty."""
    listed = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(listed, list):
        return listed
    last = max((place for place, each in enumerate(listed) if not _is_empty(each)), default=-1)
    return [_text(each) for each in listed[: last + 1]]


def _answers(value: Any, options: Sequence[str]) -> list[Any]:  # noqa: ANN401 - likewise
    """One answer or several, without those that are absent."""
    listed = value if isinstance(value, list) else [value]
    return [_answer(each, options) for each in map(_unwrapped, listed) if each is not None]


def _answer(item: object, options: Sequence[str]) -> object:
    """The letter of an option where it is a number, which counts from 0, and not the text of one."""
    written = str(item)
    is_place = written.isdecimal() and (isinstance(item, int) or written not in options)
    return letter_of(int(written)) if is_place and int(written) < len(options) else _text(item)


def _unwrapped(item: object) -> object:
    """The answer of an object of VQA v2: ``{"answer": "yes", "answer_confidence": ..., "answer_id": ...}``."""
    return item["answer"] if isinstance(item, Mapping) and "answer" in item else item


def _text(value: object) -> object:
    """A number, a date and the like as text; what holds others is refused when it is validated."""
    return value if value is None or isinstance(value, Mapping | list) else str(value)


def _is_empty(value: object) -> bool:
    return value is None or value == ""


def parsed(value: object) -> Any:  # noqa: ANN401 - what JSON holds
    """A list or an object that a table writes as JSON or, as VLMEvalKit and pandas do, as Python writes it."""
    if not (isinstance(value, str) and value.lstrip().startswith(("[", "{"))):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, (list, dict)):
            return found
    return value
