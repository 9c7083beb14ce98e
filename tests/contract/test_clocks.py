"""Every clock passes one suite."""

from itertools import pairwise

import pytest
import torch

from chronostat.errors import ModelError
from chronostat.measure.clock import Clock, CpuClock, CudaClock, FakeClock, clock_for

NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_cuda_clock():
    return CudaClock(torch.device("cuda", torch.cuda.current_device()))


@pytest.fixture(
    params=[CpuClock, FakeClock, pytest.param(make_cuda_clock, marks=NEEDS_CUDA)], ids=["cpu", "fake", "cuda"]
)
def clock(request) -> Clock:
    return request.param()


def let_time_pass(clock: Clock) -> None:
    if isinstance(clock, FakeClock):
        clock.advance_ms(1.5)
    elif isinstance(clock, CudaClock):
        torch.cuda._sleep(1_000_000)
    else:
        start_ns = clock.host_ns()
        while clock.host_ms_since(start_ns) < 0.2:
            pass


def test_a_mark_is_no_time_from_itself(clock):
    mark = clock.mark()
    clock.synchronize()
    assert clock.between_ms(mark, mark) == 0


def test_time_between_marks_is_positive_and_additive(clock):
    marks = []
    for _ in range(3):
        marks.append(clock.mark())
        let_time_pass(clock)
    marks.append(clock.mark())
    clock.synchronize()
    parts = [clock.between_ms(a, b) for a, b in pairwise(marks)]
    assert min(parts) > 0
    # CUDA events have a resolution of about half a microsecond, each
    assert sum(parts) == pytest.approx(clock.between_ms(marks[0], marks[-1]), abs=0.01)


def test_reversed_marks_are_negative(clock):
    first = clock.mark()
    let_time_pass(clock)
    last = clock.mark()
    clock.synchronize()
    assert clock.between_ms(last, first) == pytest.approx(-clock.between_ms(first, last), abs=0.002)


def test_a_restarted_clock_measures_anew(clock):
    for _ in range(2):
        clock.restart()
        start = clock.mark()
        let_time_pass(clock)
        end = clock.mark()
        clock.synchronize()
        assert clock.between_ms(start, end) > 0


def test_host_time_never_goes_back(clock):
    start_ns = clock.host_ns()
    assert clock.host_ns() >= start_ns
    assert clock.host_ms_since(start_ns) >= 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_marks_do_not_wait_for_the_device():
    clock = make_cuda_clock()
    clock.mark()  # the pool is warm
    clock.restart()
    clock.synchronize()
    start_ns = clock.host_ns()
    torch.cuda._sleep(200_000_000)  # about 0.1 s
    clock.mark()
    assert clock.host_ms_since(start_ns) < 50
    clock.synchronize()
    assert clock.host_ms_since(start_ns) > 50


def test_the_fake_clock_moves_only_when_told():
    clock = FakeClock()
    start = clock.mark()
    assert clock.between_ms(start, clock.mark()) == 0
    clock.advance_ms(12.25)
    assert clock.between_ms(start, clock.mark()) == 12.25
    assert clock.host_ms_since(0) == 12.25


def test_a_clock_follows_its_own_device_only(clock):
    own = make_cuda_clock()._device if isinstance(clock, CudaClock) else torch.device("cpu")
    assert clock.follows(own)
    assert not clock.follows(torch.device("meta"))


def test_a_device_that_no_clock_can_follow_is_refused():
    with pytest.raises(ModelError, match="on device meta; latencies can be measured on cpu and cuda"):
        clock_for(torch.device("meta"))


def test_the_clock_of_the_cpu():
    assert isinstance(clock_for(torch.device("cpu")), CpuClock)


def test_the_witness_agrees_with_the_host_time(clock):
    before, start_ns = clock.cross_check_ns(), clock.host_ns()
    let_time_pass(clock)
    passed_ns, witnessed_ns = clock.host_ns() - start_ns, clock.cross_check_ns() - before
    assert 0 < passed_ns <= witnessed_ns * 1.01 + 10_000  # 500 ppm of slewing, and the resolution of two readings
