"""Files that are there whole or not at all: text, and tensors with plain numbers beside them (safetensors)."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chronostat.errors import StoreError

_KEY = "chronostat"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Write aside and rename.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the old file stays.
    """
    with _aside(path) as aside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, {_KEY: json.dumps(data)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write_tensors`` wrote.

    Raises:
        StoreError: missing, cut off, or not written by ``write_tensors``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, json.loads((file.metadata() or {})[_KEY])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error!r}; it was not written by this version of chronostat") from error


def write_text(path: Path, text: str) -> None:
    """Write aside and rename.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the old file stays.
    """
    with _aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def _aside(path: Path) -> Generator[Path]:
    """A place beside ``path`` to write to; at the end it is flushed to the disk and becomes ``path``."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write {path}: {error}; free some space or choose another run directory") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
