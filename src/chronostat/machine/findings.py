"""What a person should know of a machine before trusting its latencies, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from chronostat.machine.gpu import Gpu, GpuProperties, GpuState, held_by, other_processes, own_pids
from chronostat.machine.watch import Machine

Level = Literal["ok", "note", "problem", "unknown"]

STOLEN_SHARE = 0.01
"""Of the CPU time: more hides differences of a few percent."""
PRESSURE_SHARE = 0.1
OTHER_CORES = 0.1
FREE_MEMORY = 0.1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact of the machine.

    Attributes:
        level: ``problem`` makes the machine noisy, ``note`` is worth knowing, ``unknown`` is not told here.
        advice: what to change; empty where nothing needs to be.
    """

    topic: str
    fact: str
    level: Level = "ok"
    advice: str = ""


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """Of the CPU and what else ran on it."""
    yield _cores(machine)
    yield _governor(machine)
    yield _switch("turbo", machine.turbo, best=False, advice="turn it off if clocks follow the temperature")
    yield _stolen(machine)
    yield _pressure(machine)
    yield _quota(machine)
    yield _others(machine)
    yield _host_memory(machine)
    if not machine.waiting_known:
        yield Finding(
            topic="waiting for a CPU",
            fact="this kernel does not tell it (schedstat); involuntary context switches are counted instead",
            level="unknown",
        )


def _cores(machine: Machine) -> Finding:
    fact = f"{machine.cores} of {machine.all_cores}, {machine.threads} torch thread(s)"
    if machine.threads > machine.cores:
        return Finding(
            topic="cores",
            fact=fact,
            level="problem",
            advice="set the threads (--threads, measure.threads) to the cores or less",
        )
    return Finding(topic="cores", fact=fact)


def _governor(machine: Machine) -> Finding:
    if not machine.governors:
        return _not_told("governor")
    fact = ", ".join(machine.governors)
    if machine.governors == ("performance",):
        return Finding(topic="governor", fact=fact)
    return Finding(topic="governor", fact=fact, level="note", advice="cpupower frequency-set -g performance")


def _stolen(machine: Machine) -> Finding:
    if machine.stolen_share is None:
        return _not_told("stolen CPU time")
    fact = f"{100 * machine.stolen_share:.1f} %"
    if machine.stolen_share > STOLEN_SHARE:
        advice = "the host gives these CPUs to others: use a machine with CPUs of its own, or another hour"
        return Finding(topic="stolen CPU time", fact=fact, level="problem", advice=advice)
    return Finding(topic="stolen CPU time", fact=fact)


def _pressure(machine: Machine) -> Finding:
    if machine.pressure_share is None:
        return _not_told("CPU pressure")
    fact = f"some task waited in {100 * machine.pressure_share:.0f} % of the last 10 s"
    if machine.pressure_share > PRESSURE_SHARE:
        return Finding(topic="CPU pressure", fact=fact, level="note", advice="end what competes for the CPUs")
    return Finding(topic="CPU pressure", fact=fact)


def _quota(machine: Machine) -> Finding:
    limit = "none known" if machine.quota_cores is None else f"{machine.quota_cores:g} cores"
    if machine.throttled_ms:
        fact = f"{limit}, held this process back for {machine.throttled_ms:.0f} ms"
        advice = "raise the CPU limit of the container or control group above the number of threads"
        return Finding(topic="CPU quota", fact=fact, level="problem", advice=advice)
    return Finding(topic="CPU quota", fact=limit, level="ok" if machine.quota_cores is None else "note")


def _others(machine: Machine) -> Finding:
    if machine.other_cores is None:
        return _not_told("other processes")
    names = ", ".join(f"{each.name} ({each.pid}) {each.cores:.2f}" for each in machine.busiest)
    fact = f"keep {machine.other_cores:.2f} cores busy" + (f": {names}" if names else "")
    crowded = machine.other_cores + machine.threads > machine.cores
    if machine.other_cores <= OTHER_CORES:
        return Finding(topic="other processes", fact=fact)
    advice = "end them, or wait until they have ended"
    return Finding(topic="other processes", fact=fact, level="problem" if crowded else "note", advice=advice)


def _host_memory(machine: Machine) -> Finding:
    if machine.memory is None:
        return _not_told("memory")
    available_mib, total_mib = machine.memory
    fact = f"{available_mib:.0f} of {total_mib:.0f} MiB available"
    if available_mib >= FREE_MEMORY * total_mib:
        return Finding(topic="memory", fact=fact)
    advice = "end what fills it: a process whose pages are swapped out waits for the disk"
    return Finding(topic="memory", fact=fact, level="note", advice=advice)


def gpu_findings(gpu: Gpu | None, device: torch.device, earlier: GpuState | None) -> Iterator[Finding]:
    """Of the GPU, if the model is on one.

    Args:
        gpu: None: none, or it tells nothing.
        device: of the model.
        earlier: its state before the work that was watched.
    """
    if gpu is None:
        if device.type == "cuda":
            advice = "install the NVIDIA driver's management library where this process can see it"
            yield Finding(topic="GPU", fact="its driver tells nothing (NVML)", level="unknown", advice=advice)
        return
    properties, state = gpu.properties(), gpu.state()
    yield _clocks(properties, state)
    yield _held(state)
    yield _power_limit(properties, earlier, state)
    yield _temperature(properties)
    yield _memory(properties)
    yield _switch("GPU persistence", properties.persistence, best=True, advice="nvidia-smi -pm 1")
    yield _switch("MIG", properties.mig, best=False, advice="other slices share the card's power and clocks")
    yield _neighbours(state)


def _clocks(properties: GpuProperties, state: GpuState) -> Finding:
    told = {
        "now": state.sm_clock_mhz,
        "set": properties.application_sm_clock_mhz,
        "highest": properties.max_sm_clock_mhz,
    }
    fact = ", ".join(f"{name} {'not told' if mhz is None else f'{mhz} MHz'}" for name, mhz in told.items())
    return Finding(topic="GPU clock", fact=fact, level="unknown" if state.sm_clock_mhz is None else "ok")


def _held(state: GpuState) -> Finding:
    if state.reasons is None:
        return _not_told("GPU throttling")
    held = held_by(state.reasons)
    if not held:
        return Finding(topic="GPU throttling", fact="none")
    advice = "nvidia-smi -q -d PERFORMANCE says more: raise the power limit, cool the card, or lock a lower clock"
    return Finding(topic="GPU throttling", fact=", ".join(held), level="problem", advice=advice)


def _power_limit(properties: GpuProperties, earlier: GpuState | None, state: GpuState) -> Finding:
    """No problem: the work that is measured draws that power itself. But it belongs to this limit."""
    if properties.power_limit_w is None:
        return _not_told("GPU power limit")
    fact = f"{properties.power_limit_w:.0f} W"
    before_ms, now_ms = earlier.power_capped_ms if earlier else None, state.power_capped_ms
    if before_ms is None or now_ms is None or now_ms <= before_ms:
        return Finding(topic="GPU power limit", fact=fact)
    advice = "the work itself reaches it; its latencies are those of this limit"
    fact += f", held the clock for {(now_ms - before_ms) / 1e3:.1f} s meanwhile"
    return Finding(topic="GPU power limit", fact=fact, level="note", advice=advice)


def _temperature(properties: GpuProperties) -> Finding:
    if properties.temperature_c is None:
        return _not_told("GPU temperature")
    power = "" if properties.power_w is None else f", {properties.power_w:.0f} W"
    return Finding(topic="GPU temperature", fact=f"{properties.temperature_c} C{power}")


def _memory(properties: GpuProperties) -> Finding:
    total, used = properties.memory_total_mib, properties.memory_used_mib
    if total is None or used is None:
        return _not_told("GPU memory")
    fact = f"{used:.0f} of {total:.0f} MiB used"
    if total - used < FREE_MEMORY * total:
        advice = "free some: allocations that have to search or to be given back take time"
        return Finding(topic="GPU memory", fact=fact, level="note", advice=advice)
    return Finding(topic="GPU memory", fact=fact)


def _neighbours(state: GpuState) -> Finding:
    others = other_processes(state.pids, own_pids())
    if others is None:
        return _not_told("other processes on the GPU")
    if not others:
        return Finding(topic="other processes on the GPU", fact="none")
    advice = "end them; nvidia-smi lists them"
    return Finding(topic="other processes on the GPU", fact=str(others), level="problem", advice=advice)


def _switch(topic: str, on: bool | None, *, best: bool, advice: str) -> Finding:
    if on is None:
        return _not_told(topic)
    fact = "on" if on else "off"
    if on == best:
        return Finding(topic=topic, fact=fact)
    return Finding(topic=topic, fact=fact, level="note", advice=advice)


def _not_told(topic: str) -> Finding:
    return Finding(topic=topic, fact="not told", level="unknown")
