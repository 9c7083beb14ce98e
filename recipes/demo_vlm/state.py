"""The state of a training run in pieces: small safetensors shards and plain numbers, no pickle."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHARD_BYTES = 14_000_000  # below the 15 MB that every way of carrying files about accepts
_PAGE = "state.json"


def collect(modules: Mapping[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All weights, and what the optimizers remember of each, under names like `model.lm_head.weight#momentum`."""
    weights = named_weights(modules)
    tensors = dict(weights)
    for optimizer in optimizers:
        for name, weight in weights.items():
            tensors |= {f"{name}#{key}": value for key, value in optimizer.state.get(weight, {}).items()}
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer]
) -> None:
    """Puts back what `collect` gave.

    Raises:
        ValueError: the tensors are of another model.
    """
    weights = named_weights(modules)
    found = {name for name in tensors if "#" not in name}
    if found != set(weights):
        raise ValueError(f"the state is of another model: it differs in {sorted(found ^ set(weights))[:3]}; start anew")
    owners = {
        weight: optimizer for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]
    }
    for name, tensor in tensors.items():
        weight = weights[name.partition("#")[0]]
        if "#" in name:
            owners[weight].state[weight][name.partition("#")[2]] = tensor.to(weight.device)
        else:
            weight.copy_(tensor)


def named_weights(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every weight of several modules by its full name."""
    return {
        f"{prefix}.{name}": weight for prefix, module in modules.items() for name, weight in module.named_parameters()
    }


def write_state(folder: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Writes a state aside, then puts it in the place of an older one."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    names = []
    for shard in _shards(tensors):
        names.append(f"state-{len(names):02d}.safetensors")
        save_file({name: tensors[name].contiguous() for name in shard}, aside / names[-1])
    (aside / _PAGE).write_text(json.dumps({"shards": names, **numbers}, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the numbers that `write_state` stored.

    Raises:
        ValueError: the folder holds no complete state.
    """
    try:
        numbers = json.loads((folder / _PAGE).read_text())
        tensors = {name: t for shard in numbers.pop("shards") for name, t in load_file(folder / shard).items()}
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds no complete training state: {error}; name the folder `state` of a run"
        ) from error
    return tensors, numbers


def _shards(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names in groups of at most `SHARD_BYTES`."""
    groups: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(name)
        room -= tensor.nbytes
    return groups
