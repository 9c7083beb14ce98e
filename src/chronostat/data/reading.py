"""From a row of a file to a sample: which column is what, where its images are, and what is wrong with it."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chronostat.data.columns import MOST_OPTIONS, named, parsed
from chronostat.data.conversations import Message, places_of, turns_of
from chronostat.data.images import ImageSource, load_all, shapes_of
from chronostat.data.samples import Sample, Split
from chronostat.data.sources.columnar import Pictures
from chronostat.data.sources.rows import Row, shown
from chronostat.errors import DataError
from chronostat.records.messages import Turn
from chronostat.scorers.choices import letter_of

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
    options: Annotated[list[_Text], Field(min_length=2, max_length=MOST_OPTIONS)] | None = None
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
    line = _validated(row, named(row, number, columns))
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


def _validated(row: Row, values: dict[str, Any]) -> _Line:
    try:
        line = _Line.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'line'}: {p['msg']}"
            + ("" if p["type"] == "missing" or p["input"] is values else f" (it is {shown(p['input'])})")
            for p in error.errors()[:3]
        )
        raise DataError(f"{row.where}: {problems}") from None
    if line.prompt is None and line.messages is None:
        raise DataError(f"{row.where}: prompt: Field required; give either 'prompt' or 'messages'")
    if line.prompt is not None and line.messages is not None:
        raise DataError(f"{row.where}: 'prompt' and 'messages' are both there; give one of them")
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
    listed = value if row.own else parsed(value)
    for name in listed if isinstance(listed, list) else [listed]:
        if isinstance(name, Pictures):
            yield from name.sources(row)
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
    """The whole of it is decoded once to see that it can be, and again where the image is used: it is kept as text."""
    bare = "".join(text.split())  # some break it into lines
    try:
        held = base64.b64decode(bare, validate=True)
    except ValueError:
        raise DataError(f"{row.where}: image {shown(name)} is neither a file that exists nor base64") from None
    if not held:
        raise DataError(f"{row.where}: image {shown(name)} is empty")
    return ImageSource(f"image of {row.where}", partial(base64.b64decode, bare))


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
