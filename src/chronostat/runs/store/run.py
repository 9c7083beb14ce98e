# pyright: reportUnknownParameterType=false
# pyarrow comes without types.
"""A run directory: facts about the run, its tables, and files of results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from chronostat.errors import StoreError
from chronostat.files import disk_errors, write_whole
from chronostat.records import Decision, Phase, Step, Trial, plain
from chronostat.runs.store.comparable import require_comparable
from chronostat.runs.store.lock import WriterLock
from chronostat.runs.store.parts import (
    Part,
    live_parts,
    merge_parts,
    read_parts,
    record_count,
    remove_leftovers,
    write_part,
)
from chronostat.runs.store.run_json import require_metadata
from chronostat.runs.store.tables import TABLES, TRIALS_VIEW, Record, TableKind, to_table

METADATA = "run.json"
VALIDATION = "validation.json"
_OF_A_RUN = (VALIDATION, "controller/controller.json")  # what a new run would be taken to have made


class RunStore:
    """The records of one run, append-only. Any number of readers, one writer at a time.

    The first write takes the writer's lock; ``close`` (or the end of the ``with`` block, or of the process) gives it
    back. What a method that writes has returned from is on the disk, also after kill -9 or a power failure.

    Attributes:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: WriterLock | None = None
        self._next_record: dict[str, int] = {}
        self._read: dict[str, tuple[list[Part], pa.Table]] = {}

    @classmethod
    def create(cls, folder: Path | str, metadata: Mapping[str, Any]) -> "RunStore":
        """Begin a run.

        Args:
            folder: is made if it does not exist.
            metadata: what ``run.json`` holds (docs/records.md); plain data.

        Raises:
            StoreError: the folder holds a run, has another writer, or cannot be written.
        """
        store = cls(Path(folder))
        with disk_errors(store.folder):
            store.folder.mkdir(parents=True, exist_ok=True)
        store._require_no_run()  # before the lock leaves a file in a folder that is refused
        store._begin_writing()
        try:
            store._require_no_run()  # another process may have begun one and ended since
            store.write_json(METADATA, metadata)
        except StoreError:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, folder: Path | str) -> "RunStore":
        """An existing run, to read or to continue.

        Raises:
            StoreError: the folder holds no run.
        """
        store = cls(Path(folder))
        if not store.holds(METADATA):
            raise StoreError(
                f"{folder} holds no run: there is no {METADATA} in it; name the directory that a run wrote"
            )
        return store

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another writer in. The store can still be read."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self._next_record.clear()

    def append(self, records: Record | Sequence[Record]) -> None:
        """Store finished records; those of one call that are of one kind become one part.

        Raises:
            StoreError: there is another writer, or the disk is full, read-only or gone.
        """
        many = (records,) if isinstance(records, Trial | Decision | Step) else records
        self._begin_writing()
        for kind in TABLES.values():
            self._append(kind, [record for record in many if isinstance(record, kind.record)])

    def _append(self, kind: TableKind, records: Sequence[Record]) -> None:
        if not records:
            return
        folder = self.folder / kind.name
        first = self._next_record.pop(kind.name, None)  # absent at first, and after an append that was interrupted
        if first is None:
            first = record_count(folder)
        part = Part(first, first + len(records) - 1)
        write_part(folder, part, to_table(kind, first, records))
        self._next_record[kind.name] = part.last + 1

    def compact(self) -> None:
        """Merge the parts of each table into one file. A crash meanwhile loses and doubles nothing.

        Raises:
            StoreError: a part is damaged, or the disk cannot be written; all records stay as readable as they were.
        """
        self._begin_writing()
        for kind in TABLES.values():
            merge_parts(self.folder / kind.name, kind.schema)

    def trials(self, phase: Phase | None = None) -> list[Trial]:
        """The trials in the order they were stored; those of one phase if it is given.

        Raises:
            UnlikeConditions: some executions cannot be compared with others; names what differs. ``query`` reads them.
            StoreError: a part is missing or damaged, or the conditions of an execution are not known.
        """
        self.require_like_executions()
        table = self.table("executions")
        if phase is not None:
            table = table.filter(pc.field("phase") == phase)
        return list(TABLES["executions"].records_of(table.to_pylist()))

    def require_like_executions(self) -> None:
        """Accept a run whose executions can all be compared.

        Raises:
            UnlikeConditions: names what differs.
            StoreError: the conditions of an execution are not known.
        """
        fingerprints = self.table("executions").column("conditions").unique().to_pylist()
        require_comparable([each for each in fingerprints if each is not None], self.metadata)

    def decisions(self) -> list[Decision]:
        """The decisions in the order they were stored."""
        return list(TABLES["decisions"].records_of(self.table("decisions").to_pylist()))

    def steps(self) -> list[Step]:
        """The learning steps in the order they were stored."""
        return list(TABLES["steps"].records_of(self.table("steps").to_pylist()))

    def table(self, name: str) -> pa.Table:
        """The rows of ``executions``, ``decisions`` or ``steps`` as they are now.

        Raises:
            StoreError: a part is missing or damaged; names it.
        """
        folder = self.folder / name
        parts = live_parts(folder)
        known = self._read.get(name)
        if known is None or known[0] != parts:
            known = self._read[name] = (parts, read_parts(folder, TABLES[name].schema))
        return known[1]

    def query(self, sql: str) -> duckdb.DuckDBPyRelation:
        """What DuckDB answers over the views ``executions``, ``trials``, ``decisions`` and ``steps``.

        The relation gives rows (``fetchall()``), a table (``to_arrow_table()``) or a data frame (``df()``).

        Raises:
            StoreError: a part is missing or damaged; names it.
            duckdb.Error: the SQL is wrong.
        """
        connection = duckdb.connect()
        for name in TABLES:
            connection.register(name, self.table(name))
        connection.execute(TRIALS_VIEW)
        return connection.sql(sql)

    @property
    def metadata(self) -> dict[str, Any]:
        """What ``run.json`` holds now.

        Raises:
            StoreError: it is missing or damaged.
        """
        data = self.read_json(METADATA)
        require_metadata(data, self.folder / METADATA)
        return data

    def update_metadata(self, **metadata: Any) -> None:  # noqa: ANN401 - plain data of any shape
        """Replace some keys of ``run.json``."""
        self.write_json(METADATA, {**self.metadata, **metadata})

    def holds(self, name: str) -> bool:
        """Whether the run has this file."""
        return (self.folder / name).is_file()

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write a file of plain data whole; readers see the old one or the new one, and null for NaN and infinity."""
        content = json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n"
        self._begin_writing()
        write_whole(self.folder / name, content.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """What ``write_json`` wrote.

        Raises:
            StoreError: missing or damaged.
        """
        path = self.folder / name
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(f"{path} does not exist; this run has not got that far") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}; put back a whole copy") from error
        if not isinstance(data, dict):
            raise StoreError(f"cannot read {path}: it holds a {type(data).__name__} instead of an object")
        return cast("dict[str, Any]", data)

    def _require_no_run(self) -> None:
        """Accept a folder that a run can begin in."""
        if self.holds(METADATA):
            raise StoreError(
                f"{self.folder} already holds a run; choose another run directory, resume it, or delete it first"
            )
        left = [name for name in _OF_A_RUN if self.holds(name)]
        left += [name for name in TABLES if live_parts(self.folder / name)]
        if left:
            raise StoreError(
                f"{self.folder} holds what is left of a run without {METADATA}: {', '.join(left)}; choose another run "
                "directory, or delete it first"
            )

    def _begin_writing(self) -> None:
        """Take the lock and tidy up after a killed writer."""
        if self._lock is not None:
            return
        self._lock = WriterLock(self.folder)
        for name in TABLES:
            remove_leftovers(self._table_folder(name))

    def _table_folder(self, name: str) -> Path:
        folder = self.folder / name
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
        return folder
