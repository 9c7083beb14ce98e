import resource
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chronostat.compare.reasons import kind_of, that_count
from chronostat.machine import disturbance
from chronostat.machine.disturbance import Facts, Reader, Watch, reason
from chronostat.machine.gpu import GpuState
from chronostat.machine.linux import Linux
from stand_ins.fake_linux import FakeLinux

CPU = torch.device("cpu")
BEFORE = Facts(
    time_ns=0, cpu=0, waited_ms={"1": 5.0}, switches=10, stolen_ms={0: 100.0, 1: 0.0}, throttled_ms=3.0, pressure_ms=1.0
)


def after(ms, **changes):
    return replace(BEFORE, time_ns=round(ms * 1e6), **changes)


@pytest.mark.parametrize("ms", [1, 30, 30_000])
def test_a_slow_repeat_without_such_facts_stays(ms):
    assert reason(BEFORE, after(ms)) is None


@pytest.mark.parametrize(
    ("ms", "waited_ms", "said"),
    [
        (10, 0.19, None),  # 1 % of 10 ms is 0.1 ms, but 0.2 ms are always allowed
        (10, 0.3, "waited 0.3 ms for a CPU, 2 involuntary context switches"),
        (100, 0.9, None),  # 1 % of 100 ms is 1 ms
        (100, 1.5, "waited 1.5 ms for a CPU, 2 involuntary context switches"),
    ],
)
def test_waiting_counts_from_one_percent_of_the_duration(ms, waited_ms, said):
    assert reason(BEFORE, after(ms, waited_ms={"1": 5.0 + waited_ms}, switches=12)) == said


def test_switches_that_cost_nothing_are_no_disturbance_where_the_waiting_is_known():
    assert reason(BEFORE, after(100, switches=60)) is None


def test_of_several_threads_the_one_that_waited_longest_counts():
    before = replace(BEFORE, waited_ms={"1": 0.0, "2": 0.0, "ended": 9.0})
    assert reason(before, after(100, waited_ms={"1": 0.5, "2": 4.0, "new": 50.0})) == (
        "waited 4.0 ms for a CPU, 0 involuntary context switches"
    )


def test_where_the_waiting_is_not_known_switches_count_as_a_time_slice_each():
    before = replace(BEFORE, waited_ms={})
    assert reason(before, after(200, waited_ms={}, switches=11)) == "1 involuntary context switches"  # 3 ms > 2 ms
    assert reason(before, after(300, waited_ms={}, switches=11)) is None  # 3 ms are 1 %
    crowded = after(1000, waited_ms={}, switches=12, pressure_ms=31.0)
    assert reason(before, crowded) == "tasks waited 30.0 ms for a CPU"  # 2 switches are 6 of 10 ms


def test_stolen_time_counts_on_the_cpu_that_worked():
    assert reason(BEFORE, after(90, stolen_ms={0: 110.0, 1: 0.0})) == "stolen CPU time 10 ms"
    assert reason(BEFORE, after(90, stolen_ms={0: 100.0, 1: 10.0})) is None
    assert reason(BEFORE, after(90, cpu=1, stolen_ms={0: 100.0, 1: 10.0})) == "stolen CPU time 10 ms"


def test_with_several_threads_every_cpu_may_have_worked():
    before = replace(BEFORE, cpu=None)
    assert reason(before, after(90, cpu=None, stolen_ms={0: 100.0, 1: 20.0})) == "stolen CPU time 20 ms"


def test_throttling_of_the_control_group():
    assert reason(BEFORE, after(100, throttled_ms=11.0)) == "cgroup throttled 8.0 ms"
    assert reason(BEFORE, after(100, throttled_ms=4.0)) is None


def test_facts_that_are_not_known_say_nothing():
    assert reason(Facts(time_ns=0), Facts(time_ns=10**9)) is None
    assert reason(replace(BEFORE, throttled_ms=None), after(10, throttled_ms=50.0)) is None


def on_gpu(before, now):
    earlier = replace(BEFORE, gpu=GpuState(**before))
    return reason(earlier, replace(earlier, time_ns=100_000_000, gpu=GpuState(**now)))


def test_a_gpu_that_idles_before_and_runs_freely_is_undisturbed():
    quiet = {"sm_clock_mhz": 1980, "full_sm_clock_mhz": 1980, "pids": frozenset({4711})}
    assert on_gpu({"reasons": 0x1, **quiet}, {"reasons": 0x0, **quiet}) is None


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        (0xC, "HwSlowdown"),
        (0x20, "SwThermalSlowdown"),
        (0x48, "HwSlowdown, HwThermalSlowdown"),
        (0x81, "HwPowerBrakeSlowdown"),
    ],
)
def test_whatever_holds_the_gpu_clock_is_named(bits, name):
    assert on_gpu({"reasons": 0}, {"reasons": bits}) == f"GPU clock held by {name}"
    assert on_gpu({"reasons": bits}, {"reasons": 0}) == f"GPU clock held by {name}"


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x4, 0x10, 0x100])
def test_clocks_that_idle_or_were_set_or_that_the_work_itself_holds_at_the_power_limit_are_no_disturbance(bits):
    assert on_gpu({"reasons": bits}, {"reasons": bits}) is None


def test_throttling_that_ended_before_it_was_asked_for_is_counted():
    hot = {"held_ms": {"temperature": 5.0}}
    assert on_gpu(hot, {"held_ms": {"temperature": 9.0}}) == "GPU clock held by temperature for 4.0 ms"
    assert on_gpu(hot, {"held_ms": {"temperature": 6.0}}) is None  # 1 % of 100 ms
    assert on_gpu({"power_capped_ms": 5.0}, {"power_capped_ms": 90.0}) is None  # the work draws that power itself


def test_a_clock_below_three_quarters_counts_unless_somebody_set_it():
    slow = {"sm_clock_mhz": 1400, "full_sm_clock_mhz": 1980}
    assert on_gpu({}, slow) == "SM clock 1400 of 1980 MHz"
    assert on_gpu({}, {**slow, "sm_clock_mhz": 1500}) is None
    assert on_gpu({}, {**slow, "reasons": 0x2}) is None
    assert on_gpu({}, {**slow, "reasons": 0x1}) is None
    assert on_gpu({}, {**slow, "reasons": 0x4}) is None  # at the power limit of its own work


def test_another_process_on_the_gpu():
    assert on_gpu({"pids": frozenset({1, 2})}, {"pids": frozenset({1})}) == "another process on the GPU"


def test_kinds_of_reasons_have_no_numbers():
    assert kind_of("waited 1.5 ms for a CPU, 2 involuntary context switches; stolen CPU time 10 ms") == (
        "waited for a CPU, involuntary context switches; stolen CPU time"
    )
    assert kind_of("7 involuntary context switches") == "involuntary context switches"
    assert kind_of("SM clock 1400 of 1980 MHz") == "SM clock"
    assert kind_of("GPU clock held by temperature for 4.0 ms") == "GPU clock held by temperature"


def test_the_watch_reads_once_before_and_once_after():
    properties = iter([BEFORE, after(50, throttled_ms=9.0)])
    with Watch(CPU, read=lambda: next(properties)) as watch:
        assert watch.reason is None
    assert watch.reason == "cgroup throttled 6.0 ms"
    assert next(properties, None) is None


def test_the_watch_lets_an_error_through():
    with pytest.raises(RuntimeError, match="model"), Watch(CPU):
        raise RuntimeError("model")


def test_the_reader_of_a_system_that_tells_nothing(tmp_path):
    properties = Reader(Linux(tmp_path), None, on_cpu=True)()
    assert (properties.cpu, properties.waited_ms, properties.throttled_ms, properties.gpu) == (None, {}, None, None)
    assert properties.stolen_ms == {}


def test_the_reader_asks_a_bare_machine_for_no_stolen_time(tmp_path, monkeypatch):
    monkeypatch.setattr(disturbance.os, "sched_getaffinity", lambda _: {0})
    linux = FakeLinux(tmp_path)
    linux.cpus_did((5, 5, 2))
    assert Reader(linux, None, on_cpu=True)().stolen_ms == {0: 20}
    linux.write("proc/cpuinfo", "flags : sse2\n")
    assert Reader(FakeLinux(tmp_path), None, on_cpu=True)().stolen_ms == {}


@pytest.mark.parametrize(
    ("on_cpu", "threads", "waited_ms", "who", "cpu"),
    [
        (True, 1, {"thread-self": 2.0}, resource.RUSAGE_THREAD, 5),
        (True, 2, {"11": 1.0, "12": 7.0}, resource.RUSAGE_SELF, None),  # all torch threads work
        (False, 2, {"thread-self": 2.0}, resource.RUSAGE_THREAD, 5),  # only this one launches kernels
    ],
)
def test_the_reader_looks_at_the_threads_that_work(tmp_path, monkeypatch, on_cpu, threads, waited_ms, who, cpu):
    linux = FakeLinux(tmp_path)
    linux.thread_waited(2_000_000)
    linux.thread_waited(1_000_000, thread="11")
    linux.thread_waited(7_000_000, thread="12")
    linux.write("proc/thread-self/stat", f"7 (python) R {'0 ' * 35}5 0\n")
    linux.write("proc/pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=9000\n")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    asked = []
    monkeypatch.setattr(
        disturbance.resource, "getrusage", lambda whose: asked.append(whose) or SimpleNamespace(ru_nivcsw=3)
    )
    properties = Reader(linux, None, on_cpu=on_cpu)()
    assert (properties.waited_ms, properties.cpu, properties.switches, asked) == (waited_ms, cpu, 3, [who])
    assert properties.pressure_ms is None  # what this process waited itself is known


def test_where_the_waiting_is_not_told_the_pressure_is_read(tmp_path):
    linux = FakeLinux(tmp_path)
    linux.write("proc/thread-self/schedstat", "0 0 0\n")  # a kernel that does not count it
    linux.write("proc/pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=9000\n")
    properties = Reader(linux, None, on_cpu=False)()
    assert (properties.waited_ms, properties.pressure_ms) == ({}, 9.0)


def test_a_thread_that_is_measured_waits_for_a_competing_one_by_the_kernels_own_count(tmp_path):
    linux = FakeLinux(tmp_path)
    linux.thread_waited(0)
    read = Reader(linux, None, on_cpu=False)
    with Watch(CPU, read=read) as watch:
        linux.thread_waited(30_000_000_000)
    assert watch.reason is not None
    assert watch.reason.startswith("waited 30000.0 ms for a CPU")


def test_a_reader_works_in_any_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(disturbance.reader_for(CPU)()))
    thread.start()
    thread.join()
    assert seen[0].switches >= 0


@pytest.mark.parametrize(
    ("calm", "counts"),
    [
        ([True, True, False], [True, True, False]),
        ([True, False], [True, False]),  # half is enough
        ([True, False, False], [True, True, True]),
        ([], []),
    ],
)
def test_what_was_disturbed_counts_only_where_most_was(calm, counts):
    assert that_count(np.array(calm, dtype=bool)).tolist() == counts
