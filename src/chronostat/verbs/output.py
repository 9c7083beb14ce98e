"""Where verbs leave what machines read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chronostat.errors import StoreError


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write where the user said, in place: it may be a pipe or a device.

    Raises:
        StoreError: it cannot be written.
    """
    write_text(path, json.dumps(data, indent=2) + "\n", flag="--json")


def write_text(path: Path, text: str, *, flag: str) -> None:
    """The same for any text.

    Raises:
        StoreError: it cannot be written; names the flag.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; name another file with {flag}") from None
