"""What this machine did while something was measured, as far as it can disturb measurements."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from chronostat.machine.linux import CpuTimes, Linux, Memory

_BUSIEST = 3
_LEAST_SHARE = 0.05  # of a core, for a process to be named


class Process(NamedTuple):
    """A process that ran meanwhile."""

    pid: int
    name: str
    cpu_s: float


class Busy(NamedTuple):
    """A process, and how much of a core it used."""

    pid: int
    name: str
    cores: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One stretch of time on this machine; None: this system does not tell.

    Attributes:
        cores: CPUs that this process may run on.
        all_cores: CPUs of the machine.
        threads: of torch.
        governors: of the frequency of these CPUs; empty: not told.
        turbo: whether they may run above their nominal frequency.
        stolen_share: of the time of these CPUs, taken by the host of this virtual machine.
        pressure_share: of the last 10 s, in which some task of the machine waited for a CPU.
        quota_cores: the control groups' limit; None: no limit, or not told.
        throttled_ms: how long that limit held this process back.
        other_cores: how many of these CPUs other processes kept busy.
        busiest: those that used most, as far as they can be seen from here.
        memory: of the machine, or of the control group that leaves least.
        waiting_known: the kernel tells how long threads wait for a CPU.
    """

    cores: int
    all_cores: int
    threads: int
    governors: tuple[str, ...]
    turbo: bool | None
    stolen_share: float | None
    pressure_share: float | None
    quota_cores: float | None
    throttled_ms: float | None
    other_cores: float | None
    busiest: tuple[Busy, ...]
    memory: Memory | None
    waiting_known: bool


def running_processes() -> list[Process]:
    """Every process that can be seen but this one, with the CPU time it has used."""
    seen: list[Process] = []
    for process in psutil.process_iter():
        try:
            times = process.cpu_times()
            seen.append(Process(process.pid, process.name(), times.user + times.system))
        except psutil.Error:  # ended meanwhile, or belongs to somebody else
            continue
    return [process for process in seen if process.pid != os.getpid()]


class MachineWatch:
    """Watches the machine from its beginning to ``seen``.

    Args:
        linux: the system.
        processes: lists the other processes.
        cpus: that this process may run on; asked of the system if absent.
        own_cpu_s: CPU time of this process.
        now_s: any steady time.
    """

    def __init__(
        self,
        linux: Linux,
        *,
        processes: Callable[[], Iterable[Process]] = running_processes,
        cpus: Iterable[int] | None = None,
        own_cpu_s: Callable[[], float] = time.process_time,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._linux = linux
        self._processes = processes
        self._cpus = sorted(os.sched_getaffinity(0) if cpus is None else cpus)
        self._own_cpu_s, self._now_s = own_cpu_s, now_s
        self._start_s, self._start_own_s = now_s(), own_cpu_s()
        self._start_times = linux.cpu_times(self._cpus)
        self._start_throttled_ms = linux.throttled_ms()
        self._start_processes = {each.pid: each.cpu_s for each in processes()}

    def seen(self) -> Machine:
        """What was seen so far."""
        linux, cpus = self._linux, self._cpus
        passed_s = max(self._now_s() - self._start_s, 1e-9)
        times, throttled_ms = linux.cpu_times(cpus), linux.throttled_ms()
        both = None if times is None or self._start_times is None else (self._start_times, times)
        return Machine(
            cores=len(cpus),
            all_cores=os.cpu_count() or len(cpus),
            threads=torch.get_num_threads(),
            governors=linux.governors(cpus),
            turbo=linux.turbo(),
            stolen_share=both and _stolen_share(*both),
            pressure_share=linux.pressure_share(),
            quota_cores=linux.quota_cores(),
            throttled_ms=None if throttled_ms is None else throttled_ms - (self._start_throttled_ms or 0.0),
            other_cores=both and self._other_cores(*both, passed_s),
            busiest=self._busiest(passed_s),
            memory=linux.memory(),
            waiting_known=linux.waited_ms(all_threads=False) is not None,
        )

    def _other_cores(self, before: CpuTimes, after: CpuTimes, passed_s: float) -> float:
        busy_s = (after.busy_ms - before.busy_ms) / 1e3
        return max(0.0, busy_s - (self._own_cpu_s() - self._start_own_s)) / passed_s

    def _busiest(self, passed_s: float) -> tuple[Busy, ...]:
        used: Mapping[Process, float] = {
            each: (each.cpu_s - self._start_processes.get(each.pid, 0.0)) / passed_s  # absent: it began meanwhile
            for each in self._processes()
        }
        ordered = sorted(used.items(), key=lambda pair: -pair[1])[:_BUSIEST]
        return tuple(Busy(each.pid, each.name, cores) for each, cores in ordered if cores >= _LEAST_SHARE)


def _stolen_share(before: CpuTimes, after: CpuTimes) -> float:
    stolen_ms = after.stolen_ms - before.stolen_ms
    all_ms = stolen_ms + after.busy_ms - before.busy_ms + after.idle_ms - before.idle_ms
    return stolen_ms / all_ms if all_ms else 0.0
