"""Rebuilds a model of the zoo and its request by the steps of README.md."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

HERE = Path(__file__).parent
VIDEO_PLACEHOLDER = 101


class ZooModel(NamedTuple):
    """One tiny model with a request of one image (none where the architecture takes none) and text.

    Attributes:
        options: further arguments of ``generate()``.
    """

    name: str
    model: PreTrainedModel
    batch: dict[str, Tensor]
    options: dict[str, object]


@cache
def _described() -> dict[str, dict]:
    return json.loads((HERE / "zoo.json").read_text())["architectures"]


class Expectations(NamedTuple):
    """What was written down by reading the models (expected.json).

    Attributes:
        held_out: architectures on which nothing was tuned.
        parts: of each architecture: module paths of vision and projector, path of the block list, path of the head.
        full_size: the same of architectures outside the zoo.
    """

    held_out: frozenset[str]
    parts: dict[str, dict]
    full_size: dict[str, dict]


@cache
def expectations() -> Expectations:
    read = json.loads((HERE / "expected.json").read_text())
    return Expectations(frozenset(read["held_out"]), read["architectures"], read["full_size"])


def build(name: str, **text: object) -> ZooModel:
    """Random weights, the same at each call; the answer has the length that is asked for.

    Args:
        name: the architecture.
        text: what replaces entries of its text configuration.
    """
    entry = copy.deepcopy(_described()[name])
    if text:
        entry["config"]["text_config"] |= text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, entry["config_class"])(**entry["config"])
        model = getattr(transformers, entry["model_class"])(config).eval()
    for suffix, value in entry.get("set_parameters") or ():
        _set_parameters(model, suffix, value)
    for module in model.modules():
        generation = getattr(module, "generation_config", None)
        if generation is not None:
            generation.eos_token_id = generation.forced_eos_token_id = None
            generation.pad_token_id = 0
    batch = {key: _tensor(value) for key, value in entry["inputs"].items()}
    return ZooModel(name, model, _without_video(batch), entry["generation"] or {})


def build_full_size(name: str) -> PreTrainedModel:
    """An architecture in its default size, without memory for its weights."""
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name]
    with torch.device("meta"):
        return getattr(transformers, kind)(CONFIG_MAPPING[name]())


def _set_parameters(model: PreTrainedModel, suffix: str, value: float | dict[str, float]) -> None:
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(suffix):
            if isinstance(value, dict):
                made = value["normal"] * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            else:
                made = torch.full(parameter.shape, value)
            parameter.data.copy_(made)


def _tensor(described: list | dict) -> Tensor:
    if isinstance(described, list):
        return torch.tensor(described)
    dtype = getattr(torch, described["dtype"])
    if "values" in described:
        return torch.tensor(described["values"], dtype=dtype)
    generator = torch.Generator().manual_seed(described.get("seed", 0))
    shape, fill = described["shape"], described["fill"]
    if fill == "normal":
        made = torch.randn(shape, generator=generator)
    elif fill == "uniform":
        made = torch.rand(shape, generator=generator)
    else:
        made = torch.full(shape, fill)
    if "lead" in described:
        lead = torch.tensor(described["lead"], dtype=made.dtype)
        made[..., : lead.shape[-1]] = lead
    return made.to(dtype)


def _without_video(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Chronostat measures images and text; three of the requests hold a video as well."""
    if "pixel_values_videos" not in batch:
        return batch
    keep = batch["input_ids"][0] != VIDEO_PLACEHOLDER
    text = {key: batch[key][:, keep] for key in ("input_ids", "attention_mask")}
    return {key: text.get(key, value) for key, value in batch.items() if key != "pixel_values_videos"}
