"""The conditions under which a latency was measured."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from chronostat.machine.gpu import GpuProperties, gpu_of
from chronostat.machine.linux import Linux
from chronostat.machine.stabilise import flushes_denormals
from chronostat.measure.decoding import decoding_of, own_decoding
from chronostat.measure.replays import engine_of
from chronostat.models.compiled import is_compiled
from chronostat.records import NOT_RECORDED, Conditions
from chronostat.version import VERSION

_GIT_S = 10


def read_conditions(model: PreTrainedModel, *, sample: bool = False) -> Conditions:
    """Conditions of this process and model.

    Args:
        model: the model.
        sample: whether its answers are sampled, as its generation_config says, and not greedy.

    Raises:
        ConfigError: it shall sample and does not.
        MeasurementError: it decodes in another way than token by token.
    """
    device = model.device
    on_cuda = device.type == "cuda"
    gpu = gpu_of(device)
    card = gpu.properties() if gpu else GpuProperties(uuid="unknown" if on_cuda else "none", driver="unknown")
    cpus = sorted(os.sched_getaffinity(0))
    return Conditions(
        machine=platform.node(),
        cpu=_cpu_name(),
        cores=len(cpus),
        device=torch.cuda.get_device_name(device) if on_cuda else "cpu",
        driver=_cuda_driver(card) if on_cuda else "none",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(getattr(model.config, "_attn_implementation", None)),  # the library has no public name for it
        gpu=card.uuid,
        max_sm_clock_mhz=card.max_sm_clock_mhz,
        application_sm_clock_mhz=card.application_sm_clock_mhz,
        power_limit_w=card.power_limit_w,
        persistence=card.persistence,
        mig=card.mig,
        governor=", ".join(Linux().governors(cpus)) or "unknown",
        flush_denormals=flushes_denormals(),
        compiled=any(map(is_compiled, model.modules())),
        cache=_cache_name(model),
        engine=engine_of(model),
        adapter=_adapter(model),
        python=platform.python_version(),
        decoding=decoding_of(model, sample=sample).text,
        affinity=_ranges(cpus),
        commit=_commit(),
    )


def as_it_was(stored: Conditions, model: PreTrainedModel) -> Conditions:
    """Conditions that an older version stored of this model, with the decoding that it took from the checkpoint."""
    return stored if stored.decoding != NOT_RECORDED else replace(stored, decoding=own_decoding(model))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cuda_driver(card: GpuProperties) -> str:
    """Version from the kernel module's description, for example ``580.95.05``; what NVML says where it holds none."""
    file = Path("/proc/driver/nvidia/version")
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text(encoding="utf-8")) if file.is_file() else None
    return version.group() if version else card.driver


def _cache_name(model: PreTrainedModel) -> str:
    return str(getattr(getattr(model, "generation_config", None), "cache_implementation", None) or "default")


def _adapter(model: nn.Module) -> str:
    """Names of the PEFT adapters that are active, with their kind: ``answers (LORA)``."""
    kinds: Mapping[str, Any] = getattr(model, "peft_config", None) or {}
    active: set[str] = set()
    for module in model.modules():
        if hasattr(module, "base_layer") and not getattr(module, "disable_adapters", True):  # a tuner layer of PEFT
            active.update(getattr(module, "active_adapters", ()))
    named = [f"{name} ({kinds[name].peft_type.value})" if name in kinds else name for name in sorted(active)]
    return ", ".join(named) or "none"


def _ranges(numbers: list[int]) -> str:
    """``0-3,8`` for ascending numbers, as Linux writes sets of CPUs."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)


@cache
def _commit() -> str:
    """The commit of the source this process runs, with ``+changes`` where files differ; its version without one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or not (root / "src/chronostat").is_dir():
        return VERSION  # installed, and perhaps inside the repository of something else
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    except (OSError, subprocess.SubprocessError):
        return VERSION  # there is no git, or it does not trust the folder
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ("git", "-C", str(root), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_S).stdout.strip()
