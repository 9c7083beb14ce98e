"""The conditions under which a latency was measured."""

import os
import platform
import re
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from chronostat.records import Conditions


def read_conditions(model: PreTrainedModel) -> Conditions:
    """Conditions of this process and model."""
    device = model.device
    on_cuda = device.type == "cuda"
    return Conditions(
        machine=platform.node(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        device=torch.cuda.get_device_name(device) if on_cuda else "cpu",
        driver=_cuda_driver() if on_cuda else "none",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(getattr(model.config, "_attn_implementation", None)),  # the library has no public name for it
    )


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cuda_driver() -> str:
    """The version in the first line of the kernel module's description, for example ``580.95.05``."""
    file = Path("/proc/driver/nvidia/version")
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text(encoding="utf-8")) if file.is_file() else None
    return version.group() if version else "unknown"
