"""The most memory that was in use at once: what a device allocated, or by how much the process grew."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak of the resident set to what is resident now


class PeakMemory:
    """Reads the peak between entry and exit.

    Args:
        device: of the model.

    Attributes:
        mib: after the ``with``. On CUDA: the most that torch had allocated on the device, weights included. On a CPU:
            by how much the peak of the process' resident memory lies above what was resident at the entry, so that
            weights that were loaded before do not count; memory that the allocator had kept counts as 0. None: this
            system does not tell.
        meaning: which of the two.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_mib: float | None = None
        self.mib: float | None = None
        self.meaning = peak_meaning(device)

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):  # a system without it has no peak of its own for this call
                _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
                self._before_mib = _status_mib("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self._device) / _MIB
        elif self._before_mib is not None:
            peak_mib = _status_mib("VmHWM")
            self.mib = None if peak_mib is None else max(0.0, peak_mib - self._before_mib)


def peak_meaning(device: torch.device) -> str:
    """What the peak of a device is, in words."""
    return "allocated on the device" if device.type == "cuda" else "growth of the process"


def _status_mib(name: str) -> float | None:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024  # the file gives KiB
    return None
