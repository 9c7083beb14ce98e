# pyright: reportUnknownParameterType=false
# pyarrow comes without types.
"""The log of requests: a line each, appended before the answer leaves, and merged into a table of Parquet parts.

A segment ``log-<first>.jsonl`` holds the records from number ``first`` on. Its lines become the next part of the table;
a segment whose first record the table holds has been merged and is not read any more. So a server that is killed
anywhere leaves each record readable exactly once. A line that was cut short is of a request without an answer.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa

from chronostat.errors import StoreError
from chronostat.files import disk_errors
from chronostat.records import plain
from chronostat.runs.store.parts import Part, merge_parts, read_parts, record_count, write_part
from chronostat.serving.served import REQUESTS, Served

FOLDER = "requests"
_SEGMENT = re.compile(r"log-(\d{8,})\.jsonl")
_READ_ATTEMPTS = 10  # more than one only if segments are merged while the table is read


class RequestLog:
    """The log of one server; whoever holds the lock of its run writes.

    Args:
        run: directory of the run; what an earlier server left unmerged is merged.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        _merge(self._folder)
        self._open()

    def append(self, served: Served) -> None:
        """Store one request; it outlives the process when this returns, not a power failure.

        Raises:
            StoreError: the disk is full, read-only or gone.
        """
        with self._lock:
            line = json.dumps(plain(served.row(self._first + self.pending)), ensure_ascii=False) + "\n"
            with disk_errors(self._path):
                self._write(line.encode())
            self.pending += 1

    def merge(self) -> None:
        """Move what is in the log to the table.

        Raises:
            StoreError: the disk cannot be written; all records stay readable.
        """
        with self._lock:
            _merge(self._folder)  # before its segment is closed: where it fails, more can be appended
            self._file.close()
            self._open()

    def close(self) -> None:
        """Leave one file.

        Raises:
            StoreError: the disk cannot be written; all records stay readable.
        """
        with self._lock:
            with disk_errors(self._path):
                self._file.close()
            _merge(self._folder)
            merge_parts(self._folder, REQUESTS)

    def _open(self) -> None:
        self._first = record_count(self._folder)
        self.pending = 0
        self._path = self._folder / f"log-{self._first:08d}.jsonl"
        with disk_errors(self._path):
            self._file = self._path.open("ab", buffering=0)
        self._whole = self._file.tell()  # bytes of whole lines
        self._torn = False  # a part of a line may stand behind them

    def _write(self, line: bytes) -> None:
        """A line behind the last whole one, also where a full disk has taken but a part of one."""
        if self._torn:
            self._file.truncate(self._whole)
        self._torn = True
        left = memoryview(line)
        while left:
            left = left[self._file.write(left) :]
        self._torn = False
        self._whole += len(line)


def read_requests(run: Path) -> pa.Table:
    """All requests of a run in order, also while its server runs; none where nothing was served.

    Raises:
        StoreError: a part is missing or damaged.
    """
    folder = run / FOLDER
    for _ in range(_READ_ATTEMPTS):
        stored = read_parts(folder, REQUESTS)
        try:
            rows = [row for path in _segments(folder, stored.num_rows) for row in _rows(path)]
        except FileNotFoundError:
            continue  # merged between listing and reading
        if record_count(folder) == stored.num_rows:
            return pa.concat_tables([stored, pa.Table.from_pylist(rows, schema=REQUESTS)]).combine_chunks()
    raise StoreError(f"cannot read {folder}: its files keep vanishing; end whatever deletes them")


def _merge(folder: Path) -> None:
    """Every segment into the table, then gone."""
    for path in _segments(folder, 0):
        first, rows = record_count(folder), list(_rows(path))
        if rows and rows[0]["record"] == first:
            write_part(folder, Part(first, first + len(rows) - 1), pa.Table.from_pylist(rows, schema=REQUESTS))
        with disk_errors(path):
            path.unlink()


def _segments(folder: Path, least: int) -> list[Path]:
    """Those that begin with a record of at least this number, in order."""
    found = [match for path in folder.glob("log-*.jsonl") if (match := _SEGMENT.fullmatch(path.name))]
    return [folder / match[0] for match in sorted(found, key=lambda m: int(m[1])) if int(match[1]) >= least]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Of the whole lines; the last one may be cut short."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


def is_served(run: Path) -> bool:
    """Whether a run holds requests."""
    return (run / FOLDER).is_dir()
