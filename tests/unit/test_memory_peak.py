"""The peak of memory in use."""

from pathlib import Path

import pytest
import torch

from chronostat.measure import memory
from chronostat.measure.memory import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_that_is_freed_again_counts_and_earlier_peaks_do_not():
    torch.ones(64 * 2**20, dtype=torch.uint8)  # an earlier peak of 64 MiB
    with PeakMemory(CPU) as small:
        pass
    with PeakMemory(CPU) as large:
        torch.ones(48 * 2**20, dtype=torch.uint8)
    assert small.mib < 16
    assert 40 < large.mib < 64
    assert large.meaning == "growth of the process"


def test_a_system_that_does_not_tell_is_unknown_and_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    with PeakMemory(CPU) as peak:
        pass
    assert peak.mib is None
