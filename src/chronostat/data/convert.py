"""Our own Parquet: every image with its bytes, in row groups small enough to be read for one image."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chronostat.data.own import Read
from chronostat.data.samples import Sample
from chronostat.files import disk_errors

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
    aside = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with pq.ParquetWriter(aside, _SCHEMA, compression="none", use_dictionary=False) as writer:
                for start in range(0, len(read), _ROWS_OF_A_GROUP):
                    rows = [_row(each) for each in read[start : start + _ROWS_OF_A_GROUP]]
                    writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def _row(read: Read) -> dict[str, Any]:
    sample = read.sample
    images = [{"bytes": image.content(), "path": None} for image in read.images]
    row = {"id": sample.id, "answers": list(sample.references), "split": sample.split, "kind": sample.kind}
    if not sample.turns and not sample.options:
        return row | {"image": images, "prompt": sample.prompt}
    placed = [part for turn in sample.turns for part in turn.parts if isinstance(part, int)]
    return row | {
        "image": [images[number] for number in placed] if placed else images,
        "messages": json.dumps(list(_messages(sample)), ensure_ascii=False),
        "options": list(sample.options) or None,
    }


def _messages(sample: Sample) -> Iterator[dict[str, Any]]:
    """The conversation, whose images are those of the row in turn."""
    if not sample.turns:
        yield {"role": "user", "content": [{"type": "text", "text": sample.prompt}]}
    for turn in sample.turns:
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts]
        yield {"role": turn.role, "content": content}
