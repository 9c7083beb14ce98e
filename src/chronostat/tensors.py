"""Arrays by name in one file (safetensors)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from chronostat.errors import StoreError

Floats = NDArray[np.float64]


def tensors_content(tensors: Mapping[str, Floats]) -> bytes:
    """What ``read_tensors`` reads."""
    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Floats]:
    """The arrays of a file.

    Raises:
        StoreError: missing, cut off, or no such file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read {path}: {error!r}; it was not written by this version of chronostat") from error
