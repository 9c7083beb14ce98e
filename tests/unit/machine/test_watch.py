import pytest
import torch

from chronostat.machine.findings import gpu_findings, machine_findings
from chronostat.machine.gpu import GpuProperties, GpuState
from chronostat.machine.linux import Memory
from chronostat.machine.watch import Busy, Machine, MachineWatch, Process, running_processes
from stand_ins.fake_linux import FakeLinux

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Times:
    """Clocks and processes that stand still until they are told."""

    def __init__(self):
        self.now_s = self.own_s = 0.0
        self.processes = []


@pytest.fixture
def linux(tmp_path):
    return FakeLinux(tmp_path)


def watched(linux, times):
    return MachineWatch(
        linux,
        processes=lambda: list(times.processes),
        cpus=(0, 1),
        own_cpu_s=lambda: times.own_s,
        now_s=lambda: times.now_s,
    )


def test_what_others_did_is_what_the_cpus_did_less_what_this_process_did(linux):
    times = Times()
    times.processes = [Process(5, "old", 100.0), Process(6, "idle", 3.0)]
    linux.cpus_did((0, 0, 0), (0, 0, 0))
    watch = watched(linux, times)
    times.now_s, times.own_s = 10.0, 9.0
    times.processes = [Process(5, "old", 104.0), Process(6, "idle", 3.1), Process(8, "began meanwhile", 1.0)]
    linux.cpus_did((990, 0, 10), (410, 570, 20))
    seen = watch.seen()
    # busy 9.9 + 4.1 s, 9 of these its own, in 10 s
    assert seen.other_cores == pytest.approx(0.5)
    # 0.3 of 20 s
    assert seen.stolen_share == pytest.approx(0.015)
    # 4 s and 0.1 s in 10 s, and all of the 1 s of a process that began meanwhile
    assert seen.busiest == (Busy(5, "old", pytest.approx(0.4)), Busy(8, "began meanwhile", pytest.approx(0.1)))
    assert (seen.cores, seen.threads) == (2, 1)


def test_a_system_that_tells_nothing_is_seen_all_the_same(linux):
    seen = watched(linux, Times()).seen()
    assert (seen.stolen_share, seen.other_cores, seen.throttled_ms, seen.pressure_share) == (None,) * 4
    assert (seen.quota_cores, seen.turbo, seen.governors, seen.busiest) == (None, None, (), ())
    assert not seen.waiting_known


def test_throttling_counts_from_the_beginning_of_the_watch(linux):
    linux.write("proc/self/cgroup", "0::/\n")
    linux.write("sys/fs/cgroup/cpu.stat", "throttled_usec 5000\n")
    watch = watched(linux, Times())
    linux.write("sys/fs/cgroup/cpu.stat", "throttled_usec 17000\n")
    assert watch.seen().throttled_ms == 12


def test_the_processes_of_this_machine_are_listed_without_this_one():
    import os

    assert os.getpid() not in {each.pid for each in running_processes()}


QUIET = Machine(
    cores=4,
    all_cores=8,
    threads=1,
    governors=("performance",),
    turbo=False,
    stolen_share=0.0,
    pressure_share=0.01,
    quota_cores=None,
    throttled_ms=0.0,
    other_cores=0.02,
    busiest=(),
    memory=Memory(available_mib=800.0, total_mib=1000.0),
    waiting_known=True,
)


def levels(**changes):
    from dataclasses import replace

    return {each.topic: (each.level, each.fact, each.advice) for each in machine_findings(replace(QUIET, **changes))}


def test_a_quiet_machine_has_nothing_to_change():
    assert {level for level, _, _ in levels().values()} == {"ok"}
    assert not any(advice for _, _, advice in levels().values())
    assert levels()["cores"][1] == "4 of 8, 1 torch thread(s)"


@pytest.mark.parametrize(
    ("topic", "changes", "level", "fact", "advice"),
    [
        ("memory", {"memory": None}, "unknown", "not told", ""),
        ("memory", {"memory": Memory(99.0, 1000.0)}, "note", "99 of 1000 MiB available", "swapped out"),
        ("cores", {"threads": 5}, "problem", "4 of 8, 5 torch", "measure.threads"),
        ("governor", {"governors": ("powersave",)}, "note", "powersave", "cpupower"),
        ("governor", {"governors": ()}, "unknown", "not told", ""),
        ("turbo", {"turbo": True}, "note", "on", "turn it off"),
        ("turbo", {"turbo": None}, "unknown", "not told", ""),
        ("stolen CPU time", {"stolen_share": 0.011}, "problem", "1.1 %", "CPUs of its own"),
        ("stolen CPU time", {"stolen_share": 0.009}, "ok", "0.9 %", ""),
        ("stolen CPU time", {"stolen_share": None}, "unknown", "not told", ""),
        ("CPU pressure", {"pressure_share": 0.2}, "note", "20 % of the last 10 s", "competes"),
        ("CPU pressure", {"pressure_share": None}, "unknown", "not told", ""),
        ("CPU quota", {"quota_cores": 1.5}, "note", "1.5 cores", ""),
        ("CPU quota", {"quota_cores": 1.5, "throttled_ms": 8.0}, "problem", "held this process back for 8 ms", "raise"),
        ("other processes", {"other_cores": 1.0}, "note", "keep 1.00 cores busy", "end them"),
        ("other processes", {"other_cores": 3.1}, "problem", "keep 3.10 cores busy", "end them"),
        ("other processes", {"other_cores": None}, "unknown", "not told", ""),
        ("waiting for a CPU", {"waiting_known": False}, "unknown", "context switches are counted instead", ""),
    ],
)
def test_findings_of_the_cpu(topic, changes, level, fact, advice):
    found = levels(**changes)[topic]
    assert found[0] == level
    assert fact in found[1]
    assert advice in found[2]


def test_busy_processes_are_named():
    assert levels(other_cores=1.0, busiest=(Busy(12, "compiler", 0.98),))["other processes"][1] == (
        "keep 1.00 cores busy: compiler (12) 0.98"
    )


class Card:
    """A card that says what it is told."""

    def __init__(self, properties=None, state=None):
        self._metadata = GpuProperties(uuid="GPU-1", driver="580", **(properties or {}))
        self._state = GpuState(**(state or {}))

    def properties(self):
        return self._metadata

    def state(self):
        return self._state


GOOD_FACTS = {
    "max_sm_clock_mhz": 1980,
    "application_sm_clock_mhz": 1980,
    "persistence": True,
    "mig": False,
    "temperature_c": 40,
    "power_w": 70.0,
    "power_limit_w": 700.0,
    "memory_total_mib": 1000.0,
    "memory_used_mib": 100.0,
}
GOOD_STATE = {"reasons": 0x1, "power_capped_ms": 2000.0, "sm_clock_mhz": 345, "pids": frozenset({4711})}


def gpu_levels(properties=(), state=()):
    card = Card({**GOOD_FACTS, **dict(properties)}, {**GOOD_STATE, **dict(state)})
    return {
        each.topic: (each.level, each.fact, each.advice)
        for each in gpu_findings(card, CUDA, GpuState(power_capped_ms=2000.0))
    }


def test_a_good_card():
    assert {level for level, _, _ in gpu_levels().values()} == {"ok"}
    assert gpu_levels()["GPU clock"][1] == "now 345 MHz, set 1980 MHz, highest 1980 MHz"
    assert gpu_levels()["GPU temperature"][1] == "40 C, 70 W"


@pytest.mark.parametrize(
    ("topic", "properties", "state", "level", "fact"),
    [
        ("GPU throttling", {}, {"reasons": 0x20}, "problem", "SwThermalSlowdown"),
        ("GPU throttling", {}, {"reasons": None}, "unknown", "not told"),
        ("GPU power limit", {}, {}, "ok", "700 W"),
        ("GPU power limit", {}, {"power_capped_ms": 3500.0}, "note", "700 W, held the clock for 1.5 s meanwhile"),
        ("GPU power limit", {"power_limit_w": None}, {}, "unknown", "not told"),
        ("GPU throttling", {}, {"reasons": 0x4}, "ok", "none"),
        ("GPU persistence", {"persistence": False}, {}, "note", "off"),
        ("GPU memory", {"memory_used_mib": 950.0}, {}, "note", "950 of 1000 MiB used"),
        ("GPU memory", {"memory_used_mib": None}, {}, "unknown", "not told"),
        ("MIG", {"mig": True}, {}, "note", "on"),
        ("MIG", {"mig": None}, {}, "unknown", "not told"),
        ("GPU temperature", {"temperature_c": None}, {}, "unknown", "not told"),
        ("other processes on the GPU", {}, {"pids": frozenset({1000001, 1000002, 1000003})}, "problem", "2"),
        ("other processes on the GPU", {}, {"pids": None}, "unknown", "not told"),
    ],
)
def test_findings_of_the_gpu(topic, properties, state, level, fact):
    assert gpu_levels(properties, state)[topic][:2] == (level, fact)


def test_no_gpu_and_no_driver():
    assert list(gpu_findings(None, CPU, None)) == []
    (found,) = gpu_findings(None, CUDA, None)
    assert (found.topic, found.level) == ("GPU", "unknown")
