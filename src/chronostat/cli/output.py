"""Where verbs leave what machines read."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chronostat.errors import ConfigError, StoreError
from chronostat.records import plain


def require_writable(files: Mapping[str, Path | None]) -> None:
    """Refuse, before anything is measured, what could not be written at the end. Nothing is opened: it may be a pipe.

    Args:
        files: by flag; None where the flag is absent.

    Raises:
        ConfigError: two flags name one file.
        StoreError: a file cannot be written; names the flag.
    """
    given = {flag: path for flag, path in files.items() if path is not None}
    if len({path.absolute() for path in given.values()}) < len(given):
        raise ConfigError(f"{' and '.join(given)} name one file; give each its own")
    for flag, path in given.items():
        problem = _problem(path)
        if problem is not None:
            raise _unwritable(path, os.strerror(problem), flag)


def _problem(path: Path) -> int | None:
    """The error number that opening it for writing would have."""
    if path.is_dir():
        return errno.EISDIR
    if not path.parent.is_dir():
        return errno.ENOTDIR if path.parent.exists() else errno.ENOENT
    return None if os.access(path if path.exists() else path.parent, os.W_OK) else errno.EACCES


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write where the user said, in place: it may be a pipe or a device. NaN and infinity become null.

    Raises:
        StoreError: it cannot be written.
    """
    write_text(path, json.dumps(plain(data), indent=2) + "\n", flag="--json")


def write_text(path: Path, text: str, *, flag: str) -> None:
    """The same for any text.

    Raises:
        StoreError: it cannot be written; names the flag.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error), flag) from None


def _unwritable(path: Path, why: str, flag: str) -> StoreError:
    return StoreError(f"cannot write {path}: {why}; name another file with {flag}")
