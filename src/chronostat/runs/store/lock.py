"""One writer per run."""

import fcntl
import os
import weakref
from pathlib import Path

from chronostat.errors import StoreError
from chronostat.files import disk_errors


class WriterLock:
    """Holds ``<run>/.lock`` until ``release``, the end of the object or the end of the process, kill -9 included.

    Raises:
        StoreError: another writer holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ".lock"
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"another process (id {owner}) is writing to the run {folder}; wait until it ends or choose another "
                "run directory"
            ) from None
        self._close = weakref.finalize(self, os.close, descriptor)
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let another writer in."""
        self._close()
