"""The peak of memory in use."""

import mmap
from pathlib import Path

import pytest
import torch

from chronostat.machine import memory
from chronostat.machine.memory import PeakMemory

CPU = torch.device("cpu")


def resident_for_a_moment(mib: int) -> None:
    """Pages of their own, which no allocator keeps."""
    with mmap.mmap(-1, mib * 2**20) as pages:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_that_is_freed_again_counts_and_earlier_peaks_do_not():
    resident_for_a_moment(64)
    with PeakMemory(CPU) as small:
        pass
    with PeakMemory(CPU) as large:
        resident_for_a_moment(48)
    assert 40 < large.mib - small.mib < 56


def test_a_system_that_does_not_tell_is_unknown_and_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    with PeakMemory(CPU) as peak:
        pass
    assert peak.mib is None
