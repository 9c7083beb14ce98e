"""Own data: a JSON Lines file of id, image path(s), prompt, reference answers and split.

One object per line::

    {"id": "a1", "image": "a1.png", "prompt": "What is it?", "answers": ["a cat"], "split": "train"}

``image`` is a path or a list of paths, relative to the file; ``kind`` may be added for reports.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chronostat.data.samples import Sample, Split
from chronostat.errors import DataError

# What Pillow's formats raise for damaged files.
_UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, Image.DecompressionBombError)


class _Line(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1)]
    image: str | Annotated[list[str], Field(min_length=1)]
    prompt: Annotated[str, Field(min_length=1)]
    answers: Annotated[list[str], Field(min_length=1)]
    split: Split
    kind: str | None = None


class JsonLines:
    """The samples of one file, checked when it is opened.

    Raises:
        DataError: the file cannot be read; a line is malformed, repeats an id, names a missing image or a video.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._samples: dict[Split, list[Sample]] = {"train": [], "validation": [], "test": []}
        seen: set[str] = set()
        for number, text in enumerate(_lines(path), start=1):
            if not text.strip():
                continue
            sample = _sample(path, number, text)
            if sample.id in seen:
                raise DataError(f"{path}:{number}: id {sample.id!r} appears twice; ids must be unique")
            seen.add(sample.id)
            self._samples[sample.split].append(sample)

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split in the order of the file.

        Raises:
            DataError: there are none.
        """
        if not self._samples[name]:
            raise DataError(f'{self._path} has no sample with "split": "{name}"; add some')
        return self._samples[name]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # splitlines also splits inside JSON strings
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the data file {path}: {error}; name a file of JSON Lines (docs/data.md) with data.path"
        ) from None


def _sample(path: Path, number: int, text: str) -> Sample:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
    if isinstance(data, dict) and "video" in data:
        raise DataError(f"{path}:{number}: video is not supported; give one or more images as 'image'")
    try:
        line = _Line.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'line'}: {p['msg']}" for p in error.errors())
        raise DataError(f"{path}:{number}: {problems}") from None
    images = [path.parent / name for name in ([line.image] if isinstance(line.image, str) else line.image)]
    for image in images:
        if not _is_file(image):
            raise DataError(f"{path}:{number}: image {image} does not exist")
    return Sample(
        id=line.id,
        split=line.split,
        prompt=line.prompt,
        references=tuple(line.answers),
        load_images=partial(load_images, images),
        kind=line.kind,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def load_images(paths: Sequence[Path]) -> tuple[Image.Image, ...]:
    """Read images as RGB.

    Raises:
        DataError: an image is missing or cannot be decoded.
    """
    return tuple(_load(path) for path in paths)


def _load(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except _UNREADABLE as error:
        raise DataError(f"cannot read the image {path}: {error}; it must be a picture that Pillow can open") from None
