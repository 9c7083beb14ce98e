"""Our own Parquet: every image with its bytes, in row groups small enough to be read for one image."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chronostat.data.conversations import names_places
from chronostat.data.own import Read
from chronostat.files import disk_errors
from chronostat.records.messages import Turn

_ROWS_OF_A_GROUP = 16
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.list_(_PICTURE)),
        ("prompt", pa.string()),
        ("messages", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answers", pa.list_(pa.string())),
        ("split", pa.string()),
        ("kind", pa.string()),
    ]
)


def write_parquet(path: Path, read: Sequence[Read]) -> None:
    """Write samples with the files of their images as they are, in the order given; whole or not at all.

    Raises:
        StoreError: it cannot be written.
        DataError: an image cannot be read.
    """
    write_rows(path, map(_row, read))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The same for rows of our schema, of which few are in memory at a time."""
    aside = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with pq.ParquetWriter(aside, _SCHEMA, compression="none", use_dictionary=False) as writer:
                for group in _groups(rows):
                    writer.write_table(pa.Table.from_pylist(group, schema=_SCHEMA))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def message_row(
    *, name: str, text: str, images: Sequence[bytes], options: Sequence[str], answers: Sequence[str], kind: str | None
) -> dict[str, Any]:
    """A row without a split, of images and then a text in which the options stand already."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return {
        "id": name,
        "image": [{"bytes": image, "path": None} for image in images],
        "messages": _json([{"role": "user", "content": content}]),
        "options": list(options) or None,
        "answers": list(answers),
        "kind": kind,
    }


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    following = iter(rows)
    while group := list(islice(following, _ROWS_OF_A_GROUP)):
        yield group


def _row(read: Read) -> dict[str, Any]:
    sample = read.sample
    row = {
        "id": sample.id,
        "image": [{"bytes": image.content(), "path": None} for image in read.images],
        "answers": list(sample.references),
        "split": sample.split,
        "kind": sample.kind,
    }
    if not (sample.turns or sample.options or names_places(sample.prompt)):
        return row | {"prompt": sample.prompt}
    turns = sample.turns or (Turn(role="user", parts=(*range(len(read.images)), sample.prompt)),)
    return row | {
        "messages": _json([{"role": turn.role, "content": list(map(_part, turn.parts))} for turn in turns]),
        "options": list(sample.options) or None,
    }


def _part(part: str | int) -> dict[str, str | int]:
    """Images by their number in the row, whose order is part of who the sample is."""
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part + 1}


def _json(messages: list[dict[str, Any]]) -> str:
    return json.dumps(messages, ensure_ascii=False)
