import pytest

from chronostat.machine.linux import CpuTimes, Linux
from stand_ins.fake_linux import FakeLinux

SOME = "some avg10=12.50 avg60=1.00 avg300=0.10 total=4567000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"

MIB = 2**20


@pytest.fixture
def linux(tmp_path):
    return FakeLinux(tmp_path)


def test_a_system_without_these_files_tells_nothing_and_raises_nothing(linux):
    assert linux.cpu_times((0, 1)) is None
    assert linux.stolen_ms((0,)) == {}
    assert linux.cpu_of_this_thread() is None
    assert linux.waited_ms(all_threads=False) is None
    assert linux.waited_ms(all_threads=True) is None
    assert linux.throttled_ms() is None
    assert linux.quota_cores() is None
    assert linux.pressure_ms() is None
    assert linux.pressure_share() is None
    assert linux.governors((0,)) == ()
    assert linux.turbo() is None


def test_a_machine_whose_kind_is_not_known_may_be_a_virtual_one(linux):
    assert linux.is_virtual


@pytest.mark.parametrize(("flags", "virtual"), [("fpu sse2 hypervisor avx2", True), ("fpu sse2 avx2", False)])
def test_a_hypervisor_is_a_flag_of_the_cpu(linux, flags, virtual):
    linux.write("proc/cpuinfo", f"model name\t: a processor\nflags\t\t: {flags}\n")
    assert linux.is_virtual is virtual


def test_ticks_of_the_cpus_in_milliseconds(linux):
    linux.cpus_did((50, 40, 3), (7, 90, 1), (1000, 0, 1000))
    # one tick is 10 ms; the third CPU is not asked for
    assert linux.cpu_times((0, 1)) == CpuTimes(busy_ms=570, idle_ms=1300, stolen_ms=40)
    assert linux.stolen_ms((0, 1)) == {0: 30, 1: 10}


def test_the_cpu_of_a_thread_whose_name_holds_spaces_and_brackets(linux):
    fields = ["R", *("0" for _ in range(4, 39)), "5", "0"]  # field 3 is the state, field 39 the CPU
    linux.write("proc/thread-self/stat", f"77 (a (b) c d) {' '.join(fields)}\n")
    assert linux.cpu_of_this_thread() == 5


def test_waiting_of_this_thread_and_of_all(linux):
    linux.thread_waited(2_500_000)
    linux.thread_waited(1_000_000, thread="11")
    linux.thread_waited(7_000_000, thread="12")
    assert linux.waited_ms(all_threads=False) == {"thread-self": 2.5}
    assert linux.waited_ms(all_threads=True) == {"11": 1.0, "12": 7.0}


def test_a_kernel_that_does_not_count_the_waiting_tells_nothing(linux):
    for folder in ("proc/thread-self", "proc/self/task/11"):
        linux.write(f"{folder}/schedstat", "0 0 0\n")
    assert linux.waited_ms(all_threads=False) is None
    assert linux.waited_ms(all_threads=True) is None
    linux.write("proc/self/task/12/schedstat", "500 0 1\n")  # it has run, and never waited
    assert linux.waited_ms(all_threads=True) == {"12": 0.0}


def test_a_thread_may_have_any_bytes_as_its_name(linux):
    fields = ["R", *("0" for _ in range(4, 39)), "5", "0"]
    linux.write("proc/thread-self/stat", "")
    (linux.proc / "thread-self/stat").write_bytes(b"77 (\xff\xfe) " + " ".join(fields).encode())
    assert linux.cpu_of_this_thread() == 5


def test_throttling_and_quota_of_version_2_groups_up_to_the_root(linux):
    linux.write("proc/self/cgroup", "0::/pod/container\n")
    linux.write("sys/fs/cgroup/pod/container/cpu.stat", "usage_usec 9\nnr_throttled 2\nthrottled_usec 8000\n")
    linux.write("sys/fs/cgroup/pod/cpu.stat", "usage_usec 9\nthrottled_usec 500\n")
    linux.write("sys/fs/cgroup/cpu.stat", "usage_usec 9\n")
    linux.write("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n")
    linux.write("sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
    linux.write("sys/fs/cgroup/cpu.max", "800000 100000\n")  # the smallest counts
    assert linux.throttled_ms() == 8.5
    assert linux.quota_cores() == 1.5


def test_a_group_that_the_container_cannot_see_is_looked_up_at_its_root(linux):
    linux.write("proc/self/cgroup", "0::/\n")
    linux.write("sys/fs/cgroup/cpu.stat", "throttled_usec 12000\n")
    linux.write("sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert linux.throttled_ms() == 12
    assert linux.quota_cores() == 0.5


def test_throttling_and_quota_of_version_1(linux):
    linux.write("proc/self/cgroup", "3:cpuset:/x\n1:cpu,cpuacct:/job\n0::/\n")
    linux.write("sys/fs/cgroup/cpu/job/cpu.stat", "nr_periods 4\nthrottled_time 3000000\n")
    linux.write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "200000\n")
    linux.write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    linux.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    linux.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert linux.throttled_ms() == 3
    assert linux.quota_cores() == 2


def test_pressure(linux):
    linux.write("proc/pressure/cpu", SOME)
    assert linux.pressure_ms() == 4567
    assert linux.pressure_share() == 0.125


def test_governors_are_named_once(linux):
    for cpu, governor in enumerate(("powersave", "performance", "powersave")):
        linux.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", governor + "\n")
    assert linux.governors((0, 1, 2)) == ("performance", "powersave")
    assert linux.governors((1,)) == ("performance",)


@pytest.mark.parametrize(
    ("file", "text", "turbo"),
    [
        ("intel_pstate/no_turbo", "0\n", True),
        ("intel_pstate/no_turbo", "1\n", False),
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
    ],
)
def test_turbo(linux, file, text, turbo):
    linux.write(f"sys/devices/system/cpu/{file}", text)
    assert linux.turbo() is turbo


def test_memory_is_that_of_the_group_that_leaves_least(linux):
    linux.write("proc/self/cgroup", "0::/pod/job\n")
    assert linux.memory() is None
    linux.write("proc/meminfo", "MemTotal:  8192000 kB\nMemFree:  100 kB\nMemAvailable:  4096000 kB\n")
    assert linux.memory() == (4000, 8000)
    linux.write("sys/fs/cgroup/pod/job/memory.max", "max\n")
    linux.write("sys/fs/cgroup/pod/memory.max", f"{2000 * MIB}\n")
    linux.write("sys/fs/cgroup/pod/memory.current", f"{1500 * MIB}\n")
    linux.write("sys/fs/cgroup/pod/memory.stat", f"anon 1\ninactive_file {400 * MIB}\n")
    assert linux.memory() == (900, 2000)


def test_this_machine_can_be_read():
    here = Linux()
    assert 0 < here.memory().available_mib < here.memory().total_mib
    assert here.cpu_of_this_thread() is None or here.cpu_of_this_thread() >= 0
    assert all(waited_ms >= 0 for waited_ms in (here.waited_ms(all_threads=True) or {}).values())
