"""From a row of a file to a sample: which column is what, where its images are, and what is wrong with it."""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chronostat.data.conversations import Message, places_of, turns_of
from chronostat.data.images import ImageSource, load_all, shapes_of
from chronostat.data.samples import Sample, Split
from chronostat.data.sources.rows import Pictures, Row, shown
from chronostat.errors import DataError
from chronostat.records.messages import Turn
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
_SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}
_LETTERS = "ABCDEFGHIJ"
_Text = Annotated[str, Field(min_length=1)]


class _Line(BaseModel):
    """What a row has to hold, in our names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: _Text
    image: Any = Field(default_factory=list[str])
    prompt: _Text | None = None
    answers: Annotated[list[str], Field(min_length=1)]
    split: Split | None = None
    kind: str | None = None
    system: _Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    options: Annotated[list[_Text], Field(min_length=2, max_length=len(_LETTERS))] | None = None
    hint: str | None = None


def read_row(row: Row, number: int, columns: Mapping[str, str]) -> tuple[Sample, list[ImageSource], bool]:
    """A sample, its images, and whether its split stands in the row; where it does not, it is ``train`` for now.

    Args:
        row: of a source.
        number: of the row, the id of a row without one.
        columns: names of columns by field; an empty name leaves the field out.

    Raises:
        DataError: names file, line and field.
    """
    if "video" in row.values:
        raise DataError(f"{row.where}: video is not supported; give one or more images as 'image'")
    line = _validated(row, _named(row, number, columns))
    images = list(_images(row, line.image))
    for message in line.messages or ():
        images += (_image(row, name) for name in message.images)
    if not images:
        raise DataError(f"{row.where}: image: Field required; requests without an image are refused")
    turns = _turns(row, line, len(images))
    sample = Sample(
        id=line.id,
        split=line.split or "train",
        prompt="\n".join(turn.text for turn in turns if turn.role == "user"),
        references=tuple(line.answers),
        load_images=partial(load_all, tuple(images)),
        image_shapes=partial(shapes_of, tuple(images)),
        kind=line.kind,
        turns=() if _is_plain(turns, len(images)) else turns,
        options=tuple(line.options or ()),
        where=row.where,
    )
    return sample, images, line.split is not None


def _named(row: Row, number: int, columns: Mapping[str, str]) -> dict[str, Any]:
    """The values of a row by our names."""
    given = dict(row.values)
    for field, column in columns.items():
        if column and column not in given:
            raise DataError(
                f"{row.where}: data.columns says that {field} is the column {column!r}, which is not there; there are "
                f"{', '.join(map(str, given))}"
            )
    if row.own and not columns:
        return given if given.get("messages") is None else {"prompt": None, **given}
    values = {field: given[name] for field in FIELDS if (name := _column(field, given, columns)) in given}
    return _of_others(values, given, number)


def _column(field: str, given: Mapping[str, object], columns: Mapping[str, str]) -> str | None:
    if field in columns:
        return columns[field] or None
    return next((name for name in _NAMES[field] if name in given), None)


def _with_messages(values: dict[str, Any]) -> dict[str, Any]:
    """Messages that a table writes as JSON."""
    return values | ({"messages": _parsed(values["messages"])} if "messages" in values else {})


def _of_others(values: dict[str, Any], given: Mapping[str, object], number: int) -> dict[str, Any]:
    """Values as other layouts write them, in our kinds; what is empty is absent."""
    values = {field: value for field, value in values.items() if value is not None and value != ""}
    values["id"] = str(values.get("id", number))
    if "options" not in values:
        texts = [str(given[letter]) for letter in _LETTERS if given.get(letter) not in {None, ""}]
        values |= {"options": texts} if len(texts) > 1 else {}
    options = _parsed(values["options"]) if "options" in values else None
    if isinstance(options, Mapping):
        options = list(options.values())
    if options is not None:
        values["options"] = [str(option) for option in options]
    if "answers" in values:
        values["answers"] = _answers(values["answers"], has_options=options is not None)
    if "split" in values:
        values["split"] = _SPLITS.get(str(values["split"]), values["split"])
    return _with_messages(values) | {key: str(values[key]) for key in ("kind", "prompt", "hint") if key in values}


def _parsed(value: object) -> Any:  # noqa: ANN401 - what JSON holds
    """A list that a table writes as JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _answers(value: object, *, has_options: bool) -> list[str]:
    """One answer or several; a number chooses an option, counted from 0."""
    listed = _parsed(value)
    if not isinstance(listed, list):
        listed = [listed]
    return [_answer(item, has_options=has_options) for item in listed]


def _answer(item: object, *, has_options: bool) -> str:
    if isinstance(item, Mapping):  # VQA v2: {"answer": "yes", "answer_confidence": ..., "answer_id": ...}
        return str(item.get("answer", ""))
    return letter_of(item) if has_options and isinstance(item, int) else str(item)


def _validated(row: Row, values: dict[str, Any]) -> _Line:
    if isinstance(values.get("answers"), list):
        values["answers"] = [_answer(a, has_options=False) if isinstance(a, Mapping) else a for a in values["answers"]]
    if isinstance(values.get("options"), Mapping):
        values["options"] = list(values["options"].values())
    try:
        line = _Line.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'line'}: {p['msg']}"
            + ("" if p["type"] == "missing" or p["input"] is values else f" (it is {shown(p['input'])})")
            for p in error.errors()[:3]
        )
        raise DataError(f"{row.where}: {problems}") from None
    if (line.prompt is None) == (line.messages is None):
        raise DataError(f"{row.where}: prompt: Field required; give either 'prompt' or 'messages'")
    if line.messages is not None and (line.hint or line.system):
        raise DataError(f"{row.where}: 'messages' holds all that is said; leave hint and system out")
    return line


def _prompt(line: _Line) -> str:
    """The text of the one question, with hint and options."""
    options = (f"{letter_of(place)}. {option}" for place, option in enumerate(line.options or ()))
    return "\n".join(filter(None, (line.hint, line.prompt, *options)))


def _turns(row: Row, line: _Line, images: int) -> tuple[Turn, ...]:
    """The conversation, of one turn where the row holds a prompt."""
    try:
        if line.messages is not None:
            return turns_of(line.messages, images)
        asked = Turn(role="user", parts=places_of(_prompt(line), images))
    except ValueError as error:
        raise DataError(f"{row.where}: {error}") from None
    return (asked,) if line.system is None else (Turn(role="system", parts=(line.system,)), asked)


def _is_plain(turns: Sequence[Turn], images: int) -> bool:
    """Whether it is the images and then one text of the user."""
    (*placed, text), role = turns[0].parts, turns[0].role
    return len(turns) == 1 and role == "user" and isinstance(text, str) and placed == list(range(images))


def _images(row: Row, value: object) -> Iterator[ImageSource]:
    if isinstance(value, Pictures):
        yield from value.sources(row.base)
        return
    listed = _parsed(value)
    names = listed if isinstance(listed, list) else [listed]
    for name in names:
        if isinstance(name, Pictures):
            yield from name.sources(row.base)
        elif isinstance(name, str):
            yield _image(row, name)
        else:
            raise DataError(f"{row.where}: image: a path or a list of paths is wanted, not {shown(name)}")


def _image(row: Row, name: str) -> ImageSource:
    """A path, a data URI, or base64.

    Raises:
        DataError: it is none of them, or the file does not exist.
    """
    if name.startswith(("http://", "https://")):
        raise DataError(f"{row.where}: image {shown(name)} is a URL; only local files are read: download it first")
    if name.startswith("data:"):
        return _encoded(row, name.partition(",")[2], name)
    path = row.base / (Path(name).expanduser() if name.startswith("~/") else name)
    if _is_file(path):
        return ImageSource(str(path), lambda: path)
    if not row.own and len(name) > 64:  # a shorter one is a name with a typo
        return _encoded(row, name, name)
    place = shown(name) if len(name) > 200 or "\0" in name else str(path)
    raise DataError(f"{row.where}: image {place} does not exist")


def _encoded(row: Row, text: str, name: str) -> ImageSource:
    try:
        head = base64.b64decode(text[:64], validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{row.where}: image {shown(name)} is neither a file that exists nor base64") from None
    if not head:
        raise DataError(f"{row.where}: image {shown(name)} is empty")
    return ImageSource(f"image of {row.where}", partial(base64.b64decode, text))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def require_same_keys(samples: Sequence[Sample], named: Sequence[bool]) -> None:
    """Accept rows of which all name a split, or none.

    Raises:
        DataError: names the first that differs.
    """
    if any(named) and not all(named):
        without = samples[named.index(False)].where
        raise DataError(f"{without}: split: Field required; other rows have one: give it to all rows, or to none")
