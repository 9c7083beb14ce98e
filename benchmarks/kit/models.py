"""Models that are measured: the bundled one, and models of real sizes with random weights.

No weights are loaded. A model is built from its configuration, directly on its device and in its dtype, and initialised
there by the library's own rules, so buffers are right and 61 GB take seconds. Latency does not depend on the values of
the weights; which experts a router picks does, and random weights pick them about evenly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from benchmarks.kit.batches import Batch
from benchmarks.kit.sizes import MODELS
from chronostat.data.demo.task import DemoTask
from chronostat.errors import ModelError
from chronostat.models.load import load_vlm
from chronostat.models.prepare import prepare


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model that is measured.

    Attributes:
        batch: makes a request of so many image tiles, on the model's device.
        processor: None for a random model, whose batches are ready tensors.
    """

    name: str
    model: PreTrainedModel
    batch: Callable[[int], Batch]
    processor: ProcessorMixin | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def build(name: str, device: str | torch.device, dtype: torch.dtype) -> BuiltModel:
    """A model by name, ready to generate.

    Raises:
        ModelError: an unknown name, or an architecture that this version of transformers does not have.
    """
    if name == "bundled":
        return _bundled(str(device), str(dtype).removeprefix("torch."))
    if name not in MODELS:
        raise ModelError(f"no benchmark model is called {name!r}; known: bundled, {', '.join(MODELS)}")
    family, sizes = MODELS[name]
    if not hasattr(transformers, family.config_class):
        raise ModelError(f"{name} needs {family.config_class}, which transformers {transformers.__version__} lacks")
    config = getattr(transformers, family.config_class)(**sizes)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.eval().generation_config.update(eos_token_id=None, pad_token_id=0, do_sample=False)
    return BuiltModel(name=name, model=model, batch=lambda tiles: _on(model, family.batch(model.config, tiles)))


def bundled_on_one_thread() -> BuiltModel:
    """The bundled model in float32 on the CPU; torch uses one thread from now on."""
    torch.set_num_threads(1)
    return build("bundled", "cpu", torch.float32)


def _bundled(device: str, dtype: str) -> BuiltModel:
    vlm = load_vlm(device=device, dtype=dtype)  # pyright: ignore[reportArgumentType] - names of torch dtypes
    vlm.model.generation_config.update(eos_token_id=None)  # answers of equal length
    sample = DemoTask(seed=0).split("train")[0]

    def batch(tiles: int) -> Batch:
        return prepare(
            vlm.processor,
            sample.load_images(),
            sample.prompt,
            device=vlm.model.device,
            dtype=vlm.model.dtype,
            image_arguments={"max_patches": tiles},
        )

    return BuiltModel(name="bundled", model=vlm.model, batch=batch, processor=vlm.processor)


def _on(model: PreTrainedModel, batch: Batch) -> Batch:
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in batch.items()
    }
