"""A task of lmms-eval as a data set: exported by a process of its own the first time, and read from there."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chronostat.data.lmms.tasks import lmms_task
from chronostat.data.own import OwnData
from chronostat.errors import ConfigError, DataError
from chronostat.files import disk_errors

_SAID = 3  # last lines of a process that failed


def load_lmms(name: str, files: Sequence[str], shuffle: int) -> OwnData:
    """The samples of a task, its splits made by image.

    Args:
        name: of the task.
        files: Parquet or JSON files in the task's own schema.
        shuffle: seed of the order.

    Raises:
        ConfigError: unknown, lmms-eval is not installed, or no files are named.
        DataError: a file does not exist, or the export failed.
        StoreError: the exported file cannot be written.
    """
    lmms_task(name)
    paths = [Path(file).expanduser().absolute() for file in files]
    if not paths:
        raise ConfigError(
            f"data.task = 'lmms:{name}' without data.files: nothing is downloaded; name the Parquet or JSON files of "
            'the task, such as data.files = ["test-00000-of-00001.parquet"]'
        )
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"data.files: {missing[0]} does not exist")
    exported = _cache() / f"{name}-{_digest(paths)}.parquet"
    if not exported.is_file():
        _export(name, paths, exported)
    return OwnData(exported, shuffle=shuffle)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "chronostat" / "lmms"


def _digest(paths: Sequence[Path]) -> str:
    """Which files they are, without reading them."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()


def _export(name: str, paths: Sequence[Path], to: Path) -> None:
    """In another process: importing lmms-eval changes the one that does it, and this one will measure."""
    if importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(
            f"data.task = 'lmms:{name}' needs lmms-eval, which is not installed: pip install 'chronostat[lmms]'"
        )
    with disk_errors(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "chronostat.data.lmms.export", name, str(to), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.strip().splitlines()[-_SAID:])
        raise DataError(f"lmms-eval cannot read {paths[0]} as task {name} ({said}); see that it has the task's schema")
