"""What Linux says of this process and its CPUs. A fact that this system does not offer is None, never an error.

Sources: proc(5); Documentation/scheduler/sched-stats.rst, accounting/psi.rst and admin-guide/cgroup-v2.rst of Linux.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_NS_PER_MS = 1e6
_KIB_PER_MIB = 1024
_MIB = 2**20
_STEAL = 7  # place of stolen ticks in /proc/stat; guest ticks follow, which earlier ones hold already


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Milliseconds since the machine was started, summed over some CPUs.

    Attributes:
        stolen_ms: a virtual machine wanted to run, and its host ran something else.
    """

    busy_ms: float
    idle_ms: float
    stolen_ms: float


class Memory(NamedTuple):
    """What can be had without swapping, and all there is."""

    available_mib: float
    total_mib: float


class Linux:
    """Reads ``/proc`` and ``/sys``.

    Args:
        root: where they lie; another folder in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.proc = root / "proc"
        self.cpus = root / "sys/devices/system/cpu"

    @cached_property
    def is_virtual(self) -> bool:
        """Whether a hypervisor may take CPU time away; true where it is not known."""
        text = read(self.proc / "cpuinfo")
        return text is None or "flags" not in text or " hypervisor" in text

    def cpu_times(self, cpus: Iterable[int]) -> CpuTimes | None:
        """What these CPUs did since the machine was started, together."""
        ticks = list(self._ticks(cpus).values())
        if not ticks:
            return None
        idle = sum(each[3] + each[4] for each in ticks)
        stolen = sum(each[_STEAL] for each in ticks)
        busy = sum(sum(each[:_STEAL]) for each in ticks) - idle
        return CpuTimes(busy_ms=busy * _TICK_MS, idle_ms=idle * _TICK_MS, stolen_ms=stolen * _TICK_MS)

    def stolen_ms(self, cpus: Iterable[int]) -> Mapping[int, float]:
        """For each of these CPUs what has been stolen from it, in whole ticks; empty where it is not known."""
        return {cpu: ticks[_STEAL] * _TICK_MS for cpu, ticks in self._ticks(cpus).items()}

    def _ticks(self, cpus: Iterable[int]) -> dict[int, list[int]]:
        wanted = {f"cpu{cpu}": cpu for cpu in cpus}
        lines = [line.split() for line in (read(self.proc / "stat") or "").splitlines()]
        ticks = {wanted[words[0]]: [int(w) for w in words[1:]] for words in lines if words and words[0] in wanted}
        return {cpu: each for cpu, each in ticks.items() if len(each) > _STEAL}

    def cpu_of_this_thread(self) -> int | None:
        """The CPU that this thread runs on now."""
        text = read(self.proc / "thread-self/stat")
        return None if text is None else int(text.rpartition(")")[2].split()[36])  # field 39; the name is field 2

    def waited_ms(self, *, all_threads: bool) -> Mapping[str, float] | None:
        """For each thread, or for this one alone, how long it has waited on a run queue for a CPU.

        A kernel that does not count this writes zeros, also as the time that a thread has run.
        """
        tasks = self._tasks() if all_threads else [self.proc / "thread-self"]
        counters = {task.name: [int(word) for word in (read(task / "schedstat") or "").split()] for task in tasks}
        waited = {name: each[1] / _NS_PER_MS for name, each in counters.items() if any(each)}
        return waited or None

    def _tasks(self) -> list[Path]:
        try:
            return list((self.proc / "self/task").iterdir())
        except OSError:
            return []

    def throttled_ms(self) -> float | None:
        """How long the CPU quotas of this process's control groups have held it back."""
        known = [ms for ms in map(_throttled_ms, self._quota_counters) if ms is not None]
        return sum(known) if known else None

    @cached_property
    def _quota_counters(self) -> list[Path]:
        return [file for file in self.cgroup_files("cpu.stat") if _throttled_ms(file) is not None]

    def quota_cores(self) -> float | None:
        """The smallest CPU quota of this process's control groups, in cores; None: no limit, or none is known."""
        quotas = [*map(_quota_v2, self.cgroup_files("cpu.max")), *map(_quota_v1, self.cgroup_files("cpu.cfs_quota_us"))]
        return min((quota for quota in quotas if quota is not None), default=None)

    def pressure_ms(self) -> float | None:
        """How long some task of the machine has waited for a CPU."""
        fields = _pressure(read(self.proc / "pressure/cpu"))
        return fields["total"] / 1e3 if "total" in fields else None

    def pressure_share(self) -> float | None:
        """Share of the last 10 s in which some task of the machine waited for a CPU."""
        fields = _pressure(read(self.proc / "pressure/cpu"))
        return fields["avg10"] / 100 if "avg10" in fields else None

    def memory(self) -> "Memory | None":
        """Of the machine, or of the control group (version 2) of this process that leaves least."""
        kib = _fields((read(self.proc / "meminfo") or "").replace(":", " ").replace(" kB", ""))
        if not {"MemTotal", "MemAvailable"} <= kib.keys():
            return None
        machine = Memory(kib["MemAvailable"] / _KIB_PER_MIB, kib["MemTotal"] / _KIB_PER_MIB)
        groups = [found for file in self.cgroup_files("memory.max") if (found := _group_memory(file)) is not None]
        return min(machine, *groups) if groups else machine

    def governors(self, cpus: Iterable[int]) -> tuple[str, ...]:
        """The frequency governors of these CPUs, each once."""
        texts = [read(self.cpus / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus]
        return tuple(sorted({text.strip() for text in texts if text}))

    def turbo(self) -> bool | None:
        """Whether CPUs may run faster than their nominal frequency."""
        off = read(self.cpus / "intel_pstate/no_turbo")
        if off is not None:
            return off.strip() == "0"
        boost = read(self.cpus / "cpufreq/boost")
        return None if boost is None else boost.strip() == "1"

    def cgroup_files(self, name: str) -> list[Path]:
        """This file of each control group that holds this process, of version 2 or of the ``cpu`` controller of 1."""
        return list(self._cgroup_files(name, self._cgroups))

    @cached_property
    def _cgroups(self) -> list[Path]:
        """The groups from the process's own up to the root; what ``/proc/self/cgroup`` names may lie outside."""
        folders: dict[Path, None] = {}
        for line in (read(self.proc / "self/cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for mount in self._mounts(controllers):
                inside = mount / path.strip("/")
                folders |= dict.fromkeys([inside, *inside.parents][: len(inside.relative_to(mount).parts) + 1])
        return list(folders)

    def _mounts(self, controllers: str) -> list[Path]:
        base = self.root / "sys/fs/cgroup"
        return [base / controllers, base / "cpu"] if controllers else [base, base / "unified"]

    @staticmethod
    def _cgroup_files(name: str, folders: Iterable[Path]) -> Iterator[Path]:
        seen: set[Path] = set()
        for folder in folders:
            file = (folder / name).resolve()  # one controller is mounted under several names
            if file not in seen and file.is_file():
                seen.add(file)
                yield file


def read(path: Path) -> str | None:
    """The text of a file; None where there is none that may be read.

    A quarter of the time that ``Path.read_text`` takes, since this is read around every measurement.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 20), b"")).decode(errors="replace")  # names of threads
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _group_memory(limit: Path) -> Memory | None:
    """Of one control group; pages of files that nobody used lately can be had as well."""
    most, used = (read(limit.with_name(name)) or "" for name in ("memory.max", "memory.current"))
    if not most.strip().isdigit() or not used.strip().isdigit():
        return None
    unused = _fields(read(limit.with_name("memory.stat"))).get("inactive_file", 0.0)
    return Memory((int(most) - int(used) + unused) / _MIB, int(most) / _MIB)


def _fields(text: str | None) -> dict[str, float]:
    """``name value`` lines."""
    pairs = [line.split() for line in (text or "").splitlines()]
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}


def _throttled_ms(file: Path) -> float | None:
    fields = _fields(read(file))
    if "throttled_usec" in fields:
        return fields["throttled_usec"] / 1e3
    return fields["throttled_time"] / _NS_PER_MS if "throttled_time" in fields else None


def _quota_v2(file: Path) -> float | None:
    quota, period = [*(read(file) or "max 1").split(), "100000"][:2]
    return None if quota == "max" else float(quota) / float(period)


def _quota_v1(file: Path) -> float | None:
    quota, period = read(file), read(file.with_name("cpu.cfs_period_us"))
    return None if quota is None or period is None or float(quota) < 0 else float(quota) / float(period)


def _pressure(text: str | None) -> dict[str, float]:
    """The fields of the line ``some``."""
    line = next((line for line in (text or "").splitlines() if line.startswith("some ")), "")
    return {name: float(value) for name, _, value in (word.partition("=") for word in line.split()[1:])}
