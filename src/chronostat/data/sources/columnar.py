"""Parquet and saved data sets: columns on disk, of which images are read when they are used."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chronostat.data.images import ImageSource
from chronostat.data.sources.rows import Row
from chronostat.errors import DataError


class Pictures:
    """The images of one cell, each read when it is asked for.

    Args:
        name: of the cell, for messages.
        fetch: reads the cell, an Arrow scalar: bytes, a struct of ``bytes`` and ``path``, a list of either, or nothing.
            Of what it holds only the bytes that are asked for are copied.
    """

    def __init__(self, name: str, fetch: Callable[[], Any]) -> None:
        self._name, self._fetch = name, fetch

    def sources(self, row: Row) -> list[ImageSource]:
        """One for each image; a struct without bytes names a file, relative to where the row is.

        Raises:
            DataError: a file does not exist, or an image of a list is absent.
        """
        cell = self._fetch()
        if not isinstance(cell, pa.ListScalar):
            return [] if _is_empty(cell) else [self._source(row, cell, None)]
        listed = list(cell) if cell.is_valid else []
        absent = [place for place, held in enumerate(listed, start=1) if _is_empty(held)]
        if absent:
            raise DataError(f"{row.where}: image {absent[0]} of {len(listed)} is absent; leave it out of the list")
        return [self._source(row, held, place) for place, held in enumerate(listed)]

    def _source(self, row: Row, held: Any, place: int | None) -> ImageSource:  # noqa: ANN401 - pyarrow has no types
        if not _content(held).is_valid:
            file = row.base / held["path"].as_py()
            if not file.is_file():
                raise DataError(f"{row.where}: image {file} does not exist")
            return ImageSource(str(file), lambda: file)
        return ImageSource(self._name, partial(_bytes_of, self._fetch, place))


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file; a column of ``{"bytes", "path"}`` or of bytes holds images.

    An image is read with the row group that holds it, of which the last two are kept.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            pictures = _picture_columns(file.schema_arrow)
            plain = [name for name in file.schema_arrow.names if name not in pictures]
            groups = [file.read_row_group(number, columns=plain).to_pylist() for number in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the data file {path}: {error}") from None
    number, opening = 0, object()
    for group, rows in enumerate(groups):
        for place, values in enumerate(rows):
            number += 1
            where = f"{path}: row {number}"
            fetch = {name: partial(_of_parquet, opening, path, group, name, place) for name in pictures}
            yield Row(where=where, values={**values, **_as_pictures(where, fetch)}, base=path.parent)


def arrow_rows(folder: Path) -> Iterator[Row]:
    """The rows of one data set that was saved to disk, mapped into memory.

    Raises:
        DataError: it cannot be read.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / str(each["filename"]) for each in state["_data_files"]]
        tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"cannot read the data set saved in {folder}: {error}") from None
    number = 0
    for file, table in zip(files, tables, strict=True):
        pictures = _picture_columns(table.schema)
        plain = table.drop_columns(list(pictures))
        for place in range(table.num_rows):
            number += 1
            where = f"{file}: row {number}"
            values = {name: plain[name][place].as_py() for name in plain.column_names}
            fetch = {name: partial(_of_table, table, name, place) for name in pictures}
            yield Row(where=where, values={**values, **_as_pictures(where, fetch)}, base=folder)


def _picture_columns(schema: Any) -> list[str]:  # noqa: ANN401 - pyarrow has no types
    return [field.name for field in schema if _holds_pictures(field.type)]


def _holds_pictures(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_pictures(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _as_pictures(where: str, fetch: Mapping[str, Callable[[], Any]]) -> dict[str, Pictures]:
    return {name: Pictures(f"{name} of {where}", read) for name, read in fetch.items()}


@lru_cache(maxsize=2)  # of each opening, since a file may be written anew
def _row_group(opening: object, path: Path, group: int, column: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column]


def _of_parquet(opening: object, path: Path, group: int, column: str, place: int) -> Any:  # noqa: ANN401 - a cell
    return _row_group(opening, path, group, column)[place]


def _of_table(table: Any, column: str, place: int) -> Any:  # noqa: ANN401 - pyarrow has no types
    return table[column][place]


def _content(cell: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """What holds the bytes of an image."""
    return cell["bytes"] if isinstance(cell, pa.StructScalar) else cell


def _is_empty(cell: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    """Whether a cell holds neither bytes nor the path of a file."""
    if not cell.is_valid:
        return True
    has_path = isinstance(cell, pa.StructScalar) and "path" in cell and bool(cell["path"].as_py())
    return not _content(cell).is_valid and not has_path


def _bytes_of(fetch: Callable[[], Any], place: int | None) -> bytes:
    cell = fetch()
    return _content(cell if place is None else cell[place]).as_py()
