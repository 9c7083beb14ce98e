"""Files of samples in several layouts, each read row by row with its place in the file."""

import json
from collections.abc import Iterator
from pathlib import Path

from chronostat.data.sources.columnar import arrow_rows, parquet_rows
from chronostat.data.sources.jsonl import json_lines
from chronostat.data.sources.rows import Row
from chronostat.data.sources.tables import table_rows
from chronostat.errors import DataError

__all__ = ["Row", "read_rows"]

_METADATA = ("metadata.jsonl", "metadata.csv")  # of the imagefolder layout
_KINDS = "JSON Lines (.jsonl), Parquet, CSV, TSV, a folder with metadata.jsonl, or a data set saved to disk"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file or folder, in their order.

    Raises:
        DataError: it is no layout that is read here, or cannot be read.
    """
    if path.is_dir():
        yield from _folder_rows(path)
        return
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from parquet_rows(path)
    elif ending in {".csv", ".tsv"}:
        yield from table_rows(path, "," if ending == ".csv" else "\t")
    elif ending in {".jsonl", ".ndjson", ".json", ""} or not path.exists():
        yield from json_lines(path)
    else:
        raise DataError(f"cannot read the data file {path}: {ending} is none of {_KINDS}")


def _folder_rows(path: Path) -> Iterator[Row]:
    if (path / "dataset_dict.json").is_file():
        for name in json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]:
            yield from (row.with_split(name) for row in arrow_rows(path / name))
    elif (path / "state.json").is_file():
        yield from arrow_rows(path)
    elif metadata := [path / name for name in _METADATA if (path / name).is_file()]:
        yield from _metadata_rows(metadata[0])
    elif nested := sorted(file for name in _METADATA for file in path.glob(f"*/{name}")):
        for file in nested:
            yield from (row.with_split(file.parent.name) for row in _metadata_rows(file))
    elif parts := sorted(path.rglob("*.parquet")):
        for part in parts:
            yield from (row.with_split(_split_named(part, path)) for row in parquet_rows(part))
    else:
        raise DataError(f"the data folder {path} holds none of {_KINDS}")


def _split_named(part: Path, folder: Path) -> str | None:
    """By its name, ``train-00000-of-00002.parquet``, or its folder where that is a number, ``train/0000.parquet``."""
    name = part.stem.partition("-")[0]
    if not name.isdecimal():
        return name
    return part.parent.name if part.parent != folder else None


def _metadata_rows(path: Path) -> Iterator[Row]:
    rows = json_lines(path) if path.suffix == ".jsonl" else table_rows(path, ",")
    return (row.of_others() for row in rows)
