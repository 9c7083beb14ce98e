"""Tensors with plain numbers beside them in one file (safetensors)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from chronostat.errors import StoreError
from chronostat.files import write_whole

_KEY = "chronostat"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        StoreError: the disk is full, read-only or gone; the old file, if any, stays.
    """
    write_whole(path, tensors_content(tensors, data))


def tensors_content(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> bytes:
    """What ``write_tensors`` writes."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_KEY: json.dumps(data)})


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
