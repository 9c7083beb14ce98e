"""Files that appear whole or not at all, and disk errors that say what to do."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from chronostat.errors import StoreError

_ADVICE = {
    errno.ENOSPC: "free some space or choose another run directory",
    errno.EFBIG: "allow larger files, free some space or choose another run directory",
    errno.EDQUOT: "free some of your quota or choose another run directory",
    errno.EROFS: "choose a run directory on a disk that can be written",
    errno.EACCES: "allow writing there or choose another run directory",
    errno.EPERM: "allow writing there or choose another run directory",
    errno.ENOENT: "the folder is gone; put it back or choose another run directory",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another run directory",
    errno.EEXIST: "a file stands where a folder is needed; choose another run directory",
}


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn an ``OSError`` while writing ``path`` into a ``StoreError`` for a person."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another run directory")
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; {advice}. Everything stored so far stays readable"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, rename. A crash leaves the old file or the new one.

    Raises:
        StoreError: the disk is full, read-only or gone; the old file, if any, stays.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
