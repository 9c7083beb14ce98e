# pyright: reportUnknownParameterType=false
# pyarrow comes without types.
"""A table as a folder of Parquet parts whose names say which records they hold.

A part is called ``<first>-<last>.parquet`` after the numbers of its first and last record. A part whose range lies
inside another's has been merged into that one and is not read any more. So a compaction that is killed anywhere leaves
every record readable exactly once: before the rename the small parts count, after it the merged one does.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from chronostat.errors import StoreError
from chronostat.files import disk_errors, write_whole

_NAME = re.compile(r"(\d{8,})-(\d{8,})\.parquet")
_ASIDE = re.compile(r"\.\d{8,}-\d{8,}\.parquet\.tmp")
_ADDED = frozenset(
    {"sampling_seed", "draw_probabilities", "policy_version"}
)  # columns that parts of older versions lack; there was no such value
_READ_ATTEMPTS = 10  # more than one only if compactions end while the table is read


class Part(NamedTuple):
    """Records ``first`` to ``last``, both included."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.first:08d}-{self.last:08d}.parquet"


def live_parts(folder: Path) -> list[Part]:
    """The parts that together hold each record once, in order.

    Raises:
        StoreError: records are missing between two parts.
    """
    live: list[Part] = []
    for part in sorted(_all_parts(folder), key=lambda part: (part.first, -part.last)):
        next_record = live[-1].last + 1 if live else 0
        if part.last < next_record:
            continue
        if part.first != next_record:
            raise StoreError(
                f"{folder} does not hold its records {next_record} to {part.first - 1} once: a part is missing or was "
                "renamed; put it back, or read the others with DuckDB (docs/records.md)"
            )
        live.append(part)
    return live


def record_count(folder: Path) -> int:
    """How many records the table has."""
    parts = live_parts(folder)
    return parts[-1].last + 1 if parts else 0


def _all_parts(folder: Path) -> list[Part]:
    """Every part, merged ones included. Two equal listings in a row never miss what a compaction moves meanwhile."""
    names, previous = _listing(folder), None
    while names != previous:
        names, previous = _listing(folder), names
    matches = (_NAME.fullmatch(name) for name in names)
    return [Part(int(match[1]), int(match[2])) for match in matches if match]


def _listing(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror}") from error


def read_parts(folder: Path, schema: pa.Schema) -> pa.Table:
    """All records of a table in order; none if the folder does not exist.

    Raises:
        StoreError: a part is missing, damaged or of another version; names it.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            tables = [_read(folder / part.name, schema) for part in live_parts(folder)]
        except FileNotFoundError:
            continue  # merged between listing and reading
        return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
    raise StoreError(f"cannot read {folder}: its parts keep vanishing; end whatever deletes them")


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    advice = "Put back a whole copy, or read the other parts with DuckDB (docs/records.md)"
    try:
        with pa.BufferReader(path.read_bytes()) as content, pq.ParquetFile(content) as file:
            table = file.read(use_threads=False)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"cannot read {path}: {error}; it is damaged. {advice}") from error
    table = _completed(table, schema)
    if not table.schema.equals(schema):
        raise StoreError(
            f"cannot read {path}: it has other columns, written by another version of chronostat. {advice}"
        )
    return table


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the columns that older versions did not write, in the order of the schema."""
    for name in _ADDED.intersection(schema.names) - set(table.column_names):
        table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table.select(schema.names) if set(table.column_names) == set(schema.names) else table


def write_part(folder: Path, part: Part, table: pa.Table) -> None:
    """Add a part; when this returns it outlives a crash.

    Raises:
        StoreError: the disk is full, read-only or gone.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", store_schema=False, write_statistics=False)
    write_whole(folder / part.name, buffer.getvalue().to_pybytes())


def merge_parts(folder: Path, schema: pa.Schema) -> None:
    """Merge all live parts into one and remove what has been merged. Only the writer may call this.

    Raises:
        StoreError: a part cannot be read, or the disk cannot be written; every record stays readable.
    """
    live = live_parts(folder)
    if len(live) > 1:
        merged = Part(live[0].first, live[-1].last)
        write_part(folder, merged, read_parts(folder, schema))
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove merged parts and files that a killed writer left half written. Only the writer may call this."""
    keep = {part.name for part in live_parts(folder)}
    with disk_errors(folder):
        for name in _listing(folder) - keep:
            if _NAME.fullmatch(name) or _ASIDE.fullmatch(name):
                (folder / name).unlink(missing_ok=True)
