"""From a sample to tensors: the chat template and the processor, under a setting's arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from chronostat.errors import DataError


def prepare(
    processor: ProcessorMixin,
    images: Sequence[Image],
    prompt: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    image_arguments: Mapping[str, Any],
) -> dict[str, Tensor]:
    """One request as ``generate()`` takes it, on ``device``.

    Args:
        processor: the model's own.
        images: RGB images, placed before the prompt in their order.
        prompt: the user's text.
        device: where the tensors go.
        dtype: type of the pixel values.
        image_arguments: passed to the image processor, for example ``{"max_patches": 4}``.

    Raises:
        DataError: the processor has no chat template.
    """
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    conversation = [{"role": "user", "content": content}]
    if getattr(processor, "chat_template", None) is None:
        raise DataError(f"{type(processor).__name__} has no chat template; add one to the model's processor")
    batch: Any = processor.apply_chat_template(
        conversation,  # pyright: ignore[reportArgumentType] - annotated for text only
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": dict(image_arguments)},
    )
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    }


def image_token_id(model: nn.Module) -> int | None:
    """The id of the image placeholder in ``input_ids``; None where the config names none."""
    config = getattr(model, "config", None)
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
