"""The store when the disk, a file or the process breaks."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chronostat.errors import StoreError
from chronostat.runs.store import RunStore
from stand_ins.sample_run import a_step, a_trial


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run", {"seed": 0}) as store:
        yield store


# --- Broken disks ---


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system; choose a run directory on a disk that can be written"),
        (errno.EACCES, "Permission denied; allow writing there"),
        (errno.EIO, "Input/output error; choose another run directory"),
    ],
)
def test_a_broken_disk_is_explained(store: RunStore, monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    store.append(a_trial())

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(
            StoreError, match=rf"cannot write .*parquet: {advice}.*stored so far stays readable"
        ) as caught:
            store.append(a_trial(1))
    assert caught.value.exit_code == 8
    assert store.trials() == [a_trial(0)]
    store.append(a_trial(2))
    assert store.trials() == [a_trial(0), a_trial(2)]
    assert [path.name for path in (store.folder / "executions").iterdir() if path.name.startswith(".")] == []


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, where this machine allows that."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def append_until_it_fails(store: RunStore, message: str) -> int:
    """How many trials were stored before one failed."""
    for index in range(1000):
        try:
            store.append(a_trial(index))
        except StoreError as error:
            if message in str(error):
                return index
            raise
    pytest.fail("nothing failed")


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=200k") as disk, RunStore.create(disk / "run", {}) as store:
        stored = append_until_it_fails(store, "No space left on device")
        assert stored > 0
        assert [trial.index for trial in RunStore.open(disk / "run").trials()] == list(range(stored))


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=1m") as disk:
        with RunStore.create(disk / "run", {}) as store:
            store.append(a_trial())
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store = RunStore.open(disk / "run")
        assert len(store.trials()) == 1
        with pytest.raises(StoreError, match="Read-only file system"):
            store.append(a_trial(1))
        with pytest.raises(StoreError, match="Read-only file system"):
            RunStore.create(disk / "other", {})


def test_a_folder_that_vanished(store: RunStore) -> None:
    store.append(a_trial())
    store.folder.rename(store.folder.with_name("moved"))
    with pytest.raises(StoreError, match="No such file or directory; the folder is gone"):
        store.append(a_trial(1))
    assert len(RunStore.open(store.folder.with_name("moved")).trials()) == 1


# --- Damage ---


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"no parquet"])
def test_a_damaged_part_is_named(store: RunStore, damage: Callable[[bytes], bytes]) -> None:
    for index in range(3):
        store.append(a_trial(index))
    part = store.folder / "executions" / "00000001-00000001.parquet"
    part.write_bytes(damage(part.read_bytes()))
    reader = RunStore.open(store.folder)
    with pytest.raises(StoreError, match=r"executions/00000001-00000001\.parquet.* is damaged"):
        reader.trials()
    with pytest.raises(StoreError, match="is damaged"):
        store.compact()
    assert len(list((store.folder / "executions").iterdir())) == 3
    assert reader.steps() == []


def test_a_part_of_another_version_is_named(store: RunStore) -> None:
    store.append(a_trial())
    store.append(a_step())
    (store.folder / "steps" / "00000000-00000000.parquet").rename(
        store.folder / "executions" / "00000001-00000001.parquet"
    )
    with pytest.raises(StoreError, match="written by another version"):
        store.trials()


def test_a_missing_part_is_noticed(store: RunStore) -> None:
    for index in range(4):
        store.append(a_trial(index))
    for number in (1, 2):
        (store.folder / "executions" / f"{number:08d}-{number:08d}.parquet").unlink()
    with pytest.raises(StoreError, match="does not hold its records 1 to 2"):
        RunStore.open(store.folder).trials()


def test_foreign_files_are_left_alone(store: RunStore) -> None:
    store.append(a_trial())
    foreign = store.folder / "executions" / "notes.txt"
    foreign.write_text("mine")
    store.compact()
    assert foreign.exists()
    assert len(store.trials()) == 1


# --- Death ---

WRITER = """
import sys
from chronostat.runs.store import RunStore
sys.path.insert(0, sys.argv[2])
from stand_ins.sample_run import a_step, a_trial
store = RunStore.open(sys.argv[1])
for index in range(len(store.trials()), 10**6):
    store.append(a_trial(index))
    print(index, flush=True)
    if index % 7 == 6:
        store.compact()
"""


def run_writer_and_kill_it(folder: Path, after: int) -> int:
    """Let a process append until it has acknowledged ``after`` trials, kill it, and return the last acknowledged."""
    command = [sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(after)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().splitlines() if line]
    assert process.returncode == -signal.SIGKILL
    return acknowledged[-1]


def test_kill_9_loses_no_acknowledged_trial(tmp_path: Path) -> None:
    RunStore.create(tmp_path, {}).close()
    for after in (1, 4, 13):
        last = run_writer_and_kill_it(tmp_path, after)
        indices = [trial.index for trial in RunStore.open(tmp_path).trials()]
        assert indices == list(range(len(indices)))
        assert len(indices) in {last + 1, last + 2}  # the one that was being written may have got through
    with RunStore.open(tmp_path) as store:
        store.append(a_trial(len(indices)))
        store.compact()
        assert [trial.index for trial in store.trials()] == list(range(len(indices) + 1))
        assert len(list((tmp_path / "executions").iterdir())) == 1


class Killed(BaseException):
    """The process has died."""


@contextmanager
def dying_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[list[str]]:
    """From the given change of the disk on, none gets through any more; yields the names of those that did."""
    done: list[str] = []
    with monkeypatch.context() as patched:
        for name in ("fsync", "replace", "unlink"):
            real = getattr(os, name)

            def change(*args: object, _name: str = name, _real: Callable[..., object] = real, **keys: object) -> object:
                if len(done) >= call:
                    raise Killed
                done.append(_name)
                return _real(*args, **keys)

            patched.setattr(os, name, change)
        yield done


def test_compaction_may_die_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [a_trial(index) for index in range(4)]
    survived, call = False, 0
    while not survived:
        folder = tmp_path / str(call)
        store = RunStore.create(folder, {})
        store.append(expected[:2])
        store.append(expected[2])
        store.append(a_step())
        store.append(expected[3])
        with dying_at(monkeypatch, call) as done:
            try:
                store.compact()
                survived = True
            except Killed:
                assert len(done) == call
        store.close()
        reader = RunStore.open(folder)
        assert reader.trials() == expected, done
        assert reader.query("SELECT count(*), count(DISTINCT record) FROM trials").fetchall() == [(4, 4)]
        with RunStore.open(folder) as again:
            again.append(a_trial(4))
            again.compact()
            assert [trial.index for trial in again.trials()] == [0, 1, 2, 3, 4]
            assert [path.name for path in (folder / "executions").iterdir()] == ["00000000-00000004.parquet"]
        call += 1
    assert call > 6  # write, rename, folder, three small parts


def test_append_may_die_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in range(3):  # file, rename, folder
        store = RunStore.create(tmp_path / str(call), {})
        store.append(a_trial(0))
        with dying_at(monkeypatch, call), pytest.raises(Killed):
            store.append(a_trial(1))
        # The same process may go on, for instance after ctrl-C: what got through is not written over.
        store.append(a_trial(2))
        assert [trial.index for trial in store.trials()] in ([0, 2], [0, 1, 2])
        store.close()
        with RunStore.open(tmp_path / str(call)) as again:
            again.append(a_trial(3))
            assert [path.name for path in (again.folder / "executions").glob(".*")] == []


def test_a_reader_during_compactions_sees_each_trial_once(store: RunStore) -> None:
    ended, has_read = threading.Event(), threading.Semaphore(0)
    seen: list[list[int]] = []

    def read() -> None:
        while not ended.is_set():
            seen.append([trial.index for trial in RunStore.open(store.folder).trials()])
            has_read.release()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for index in range(60):
            store.append(a_trial(index))
            if index % 5 == 4:
                store.compact()
                assert has_read.acquire(timeout=600)  # the reader keeps up, however little of the machine it gets
    finally:
        ended.set()
        reader.join()
    assert len(seen) >= 12
    assert all(indices == list(range(len(indices))) for indices in seen)
    assert [len(indices) for indices in seen] == sorted(len(indices) for indices in seen)
