"""The state of an NVIDIA GPU as NVML tells it. What a driver does not tell is None, never an error.

Bits and counters: NVML API reference, "Clocks Event Reasons" and "Field Value Enums"; the counters are nanoseconds.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pynvml
import torch

from chronostat.machine.linux import read

_T = TypeVar("_T")
_MIB = 2**20
_NS_PER_MS = 1e6

HOLDING: Mapping[int, str] = {
    0x08: "HwSlowdown",
    0x20: "SwThermalSlowdown",
    0x40: "HwThermalSlowdown",
    0x80: "HwPowerBrakeSlowdown",
}
"""Reasons from outside that hold the clock below what it was set to.

Idling, set clocks and synchronous boost are none of them, nor is the power cap: the work that is measured draws that
power itself, whenever it runs on this card. To leave such calls out would favour what draws less.
"""
IDLE, CLOCKS_SET, POWER_CAP = 0x01, 0x02, 0x04
_POWER = pynvml.NVML_FI_DEV_PERF_POLICY_POWER
_COUNTERS = {
    pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL: "temperature",
    pynvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT: "board limit",
}


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """A GPU at one moment.

    Attributes:
        reasons: bits of ``HOLDING`` and others.
        held_ms: for each policy how long it has held the clock down since the driver was loaded.
        power_capped_ms: how long the power limit has, likewise.
        full_sm_clock_mhz: what it should run at: its application clock, or its highest where there is none.
        pids: processes with a compute context, as the driver numbers them.
    """

    reasons: int | None = None
    held_ms: Mapping[str, float] = field(default_factory=dict)
    power_capped_ms: float | None = None
    sm_clock_mhz: int | None = None
    full_sm_clock_mhz: int | None = None
    pids: frozenset[int] | None = None


@dataclass(frozen=True, kw_only=True)
class GpuProperties:
    """What is the same all day, and what ``chronostat doctor`` says besides."""

    uuid: str
    driver: str
    max_sm_clock_mhz: int | None = None
    application_sm_clock_mhz: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    memory_total_mib: float | None = None
    memory_used_mib: float | None = None


class Gpu(Protocol):
    """Tells the state of one GPU."""

    def state(self) -> GpuState:
        """Now."""
        ...

    def properties(self) -> GpuProperties:
        """Now."""
        ...


class NvmlGpu:
    """One GPU, or one MIG slice, through NVML.

    Args:
        uuid: as NVML writes it, ``GPU-...`` or ``MIG-...``.

    Raises:
        pynvml.NVMLError: there is no driver, or no such GPU.
    """

    def __init__(self, uuid: str) -> None:
        pynvml.nvmlInit()
        self._uuid = uuid
        self._slice: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        is_slice = _told(lambda: pynvml.nvmlDeviceIsMigDeviceHandle(self._slice))
        # clocks belong to the whole card
        self._card: Any = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._slice) if is_slice else self._slice

    @cached_property
    def _full_sm_clock_mhz(self) -> int | None:
        properties = self.properties()
        return properties.application_sm_clock_mhz or properties.max_sm_clock_mhz

    def state(self) -> GpuState:
        """Clock, what holds it down, and who is there."""
        counters_ms = self._counters_ms()
        return GpuState(
            reasons=_told(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._card)),
            held_ms={name: counters_ms[each] for each, name in _COUNTERS.items() if each in counters_ms},
            power_capped_ms=counters_ms.get(_POWER),
            sm_clock_mhz=_told(lambda: pynvml.nvmlDeviceGetClockInfo(self._card, pynvml.NVML_CLOCK_SM)),
            full_sm_clock_mhz=self._full_sm_clock_mhz,
            pids=_told(
                lambda: frozenset(each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(self._slice))
            ),
        )

    def _counters_ms(self) -> dict[int, float]:
        fields: Any = _told(lambda: pynvml.nvmlDeviceGetFieldValues(self._card, [_POWER, *_COUNTERS])) or ()
        return {
            each.fieldId: each.value.ullVal / _NS_PER_MS for each in fields if each.nvmlReturn == pynvml.NVML_SUCCESS
        }

    def properties(self) -> GpuProperties:
        """Driver, clocks, modes, temperature, power and memory."""
        card, clock = self._card, pynvml.NVML_CLOCK_SM
        memory: Any = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(self._slice))
        power_mw = _told(lambda: pynvml.nvmlDeviceGetPowerUsage(card))
        limit_mw = _told(lambda: pynvml.nvmlDeviceGetPowerManagementLimit(card))
        return GpuProperties(
            uuid=self._uuid,
            driver=str(_told(pynvml.nvmlSystemGetDriverVersion) or "unknown"),
            max_sm_clock_mhz=_told(lambda: pynvml.nvmlDeviceGetMaxClockInfo(card, clock)),
            application_sm_clock_mhz=_told(lambda: pynvml.nvmlDeviceGetApplicationsClock(card, clock)),
            persistence=_told(lambda: bool(pynvml.nvmlDeviceGetPersistenceMode(card))),
            mig=_told(lambda: bool(pynvml.nvmlDeviceGetMigMode(card)[0])),
            temperature_c=_told(lambda: pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)),
            power_w=None if power_mw is None else power_mw / 1e3,
            power_limit_w=None if limit_mw is None else limit_mw / 1e3,
            memory_total_mib=None if memory is None else memory.total / _MIB,
            memory_used_mib=None if memory is None else memory.used / _MIB,
        )


def _told(question: Callable[[], _T]) -> _T | None:
    """The answer; None where this card or driver has none, or does not give it to this user."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def other_processes(pids: frozenset[int] | None, own: frozenset[int]) -> int | None:
    """How many other processes have a context on the GPU of this one; None: the driver does not tell.

    In a container the driver may number processes as its host does. One of those it lists is then this process, which
    has a context itself.

    Args:
        pids: what the driver lists.
        own: the numbers of this process that are known here.
    """
    if not pids:
        return None
    return len(pids - own) if pids & own else len(pids) - 1


@cache
def own_pids(proc: Path = Path("/proc")) -> frozenset[int]:
    """The numbers of this process in the namespaces that can be seen from here."""
    status = read(proc / "self/status") or ""
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
    return frozenset({os.getpid(), *map(int, line.split()[1:])})


def held_by(reasons: int | None) -> tuple[str, ...]:
    """Names of the reasons that hold the clock down."""
    return tuple(name for bit, name in HOLDING.items() if (reasons or 0) & bit)


_known: dict[torch.device, Gpu | None] = {}  # loading NVML takes long


def gpu_of(device: torch.device) -> Gpu | None:
    """The GPU behind a device of torch; None on a CPU, and where there is no NVML."""
    if device.type != "cuda":
        return None
    if device not in _known:
        _known[device] = _find(device)
    return _known[device]


def _find(device: torch.device) -> Gpu | None:
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    for name in (uuid, f"GPU-{uuid}", f"MIG-{uuid}"):
        found = _told(lambda name=name: NvmlGpu(name))
        if found is not None:
            return found
    return None
