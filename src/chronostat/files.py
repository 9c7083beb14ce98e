"""Tensors with plain numbers beside them in one safetensors file, written so that a reader never sees half of it."""

import json
from collections.abc import Mapping
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
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, {_KEY: json.dumps(data)})
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write {path}: {error}; free some space or choose another run directory") from error
    finally:
        aside.unlink(missing_ok=True)


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
