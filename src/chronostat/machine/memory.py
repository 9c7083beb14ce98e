"""The most memory that was in use at once: what a device allocated, or what was resident of the process."""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak of the resident set to what is resident now


class PeakMemory:
    """Reads the peak between entry and exit, weights included.

    On a CPU it is of the whole process: what the allocator keeps of earlier calls is resident as well, so that growth
    during a call would be near 0 for all but the first.

    Args:
        device: of the model.

    Attributes:
        mib: after the ``with``. On CUDA: the most that torch had allocated on the device. On a CPU: the most that was
            resident of the process. None: this system does not tell. ``peak_meaning`` says which of the two.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.mib: float | None = None

    def __enter__(self) -> Self:
        self._started = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self._device) / _MIB
        elif self._started:
            self.mib = _status_mib("VmHWM")

    def _start(self) -> bool:
        """Forget earlier peaks; False: a system without that has no peak of its own for this call."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return True
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            return False
        return True


def peak_meaning(device: torch.device) -> str:
    """What the peak of a device is, in words."""
    return "allocated on the device" if device.type == "cuda" else "resident in the process"


def _status_mib(name: str) -> float | None:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024  # the file gives KiB
    return None
