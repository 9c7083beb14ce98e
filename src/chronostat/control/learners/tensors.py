"""State as flat tensors by name, as safetensors stores it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names that begin with ``prefix.``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that ``with_prefix`` named, under their own names."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> dict[str, Tensor]:
    """Copies of the weights, the optimizer's moments and step counts, and the random state."""
    moments = {
        f"{index}.{name}": value.clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return {
        **with_prefix("model", model_state(model)),
        **with_prefix("optimizer", moments),
        "generator": generator.get_state(),
    }


def load_training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, state: Mapping[str, Tensor]
) -> None:
    """Continue from what ``training_state`` gave."""
    model.load_state_dict(without_prefix("model", state))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in without_prefix("optimizer", state).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    generator.set_state(state["generator"])


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
