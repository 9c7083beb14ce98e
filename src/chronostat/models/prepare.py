"""From a sample to tensors under a setting's arguments, and how many of its tokens are the image's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from chronostat.errors import DataError
from chronostat.records.messages import Turn


def prepare(
    processor: ProcessorMixin,
    images: Sequence[Image],
    asked: str | Sequence[Turn],
    *,
    device: torch.device,
    dtype: torch.dtype,
    image_arguments: Mapping[str, Any],
) -> dict[str, Tensor]:
    """One request as ``generate()`` takes it, on ``device``.

    Args:
        processor: the model's own.
        images: RGB images.
        asked: the user's text, before which the images stand in their order; or a conversation that places them.
        device: where the tensors go.
        dtype: type of the pixel values.
        image_arguments: passed to the image processor, for example ``{"max_patches": 4}``.

    Raises:
        DataError: the processor has no chat template, nor a method ``process`` of its own; or it takes one image, or
            no conversation.
        Exception: whatever processors raise for what they do not take; ``models/refusals.py`` puts it into words.
    """
    own: Any = getattr(processor, "process", None)
    batch = (_by_template if own is None else _by_own_method)(processor, images, asked, image_arguments)
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    }


def conversation_of(images: Sequence[Image], asked: str | Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages as chat templates take them, each with its text and images in order."""
    if isinstance(asked, str):
        asked = [Turn(role="user", parts=(*range(len(images)), asked))]
    return [{"role": turn.role, "content": [_content(images, part) for part in turn.parts]} for turn in asked]


def _content(images: Sequence[Image], part: str | int) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": images[part]}


def _by_template(
    processor: ProcessorMixin,
    images: Sequence[Image],
    asked: str | Sequence[Turn],
    image_arguments: Mapping[str, Any],
) -> Mapping[str, Any]:
    template: Any = processor
    conversation = conversation_of(images, asked)
    if getattr(processor, "chat_template", None) is None:
        raise DataError(f"{type(processor).__name__} has no chat template; add one to the model's processor")
    if _reads_pages(processor):
        if len(images) > 1:
            raise DataError(f"{type(processor).__name__} takes one image a request, this one has {len(images)}")
        text = template.apply_chat_template(conversation, add_generation_prompt=True)
        return template(images=list(images), text=[text], images_kwargs=dict(image_arguments), return_tensors="pt")
    return template.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": dict(image_arguments)},
    )


def _reads_pages(processor: ProcessorMixin) -> bool:
    """GOT-OCR takes a list of lists, which the library makes of a conversation, for the pages of one document."""
    defaults: Any = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
    return hasattr(processor, "multi_page") or any("multi_page" in kept for kept in defaults.values())


def _by_own_method(
    processor: ProcessorMixin,
    images: Sequence[Image],
    asked: str | Sequence[Turn],
    image_arguments: Mapping[str, Any],
) -> Mapping[str, Any]:
    """The first Molmo generation: ``process`` writes the prompt's format itself and returns one request unbatched."""
    own: Any = processor
    if not isinstance(asked, str):
        raise DataError(
            f"{type(processor).__name__} takes one prompt after the images, no conversation and no places of images"
        )
    made = own.process(images=list(images), text=asked, images_kwargs=dict(image_arguments))
    return {key: value.unsqueeze(0) for key, value in made.items() if isinstance(value, Tensor)}


def prompt_length(batch: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt, image placeholders included; None where the batch holds neither ids nor embeddings."""
    prompt = next((batch[key] for key in ("input_ids", "inputs_embeds") if batch.get(key) is not None), None)
    return None if prompt is None else prompt.shape[1]


def count_image_tokens(model: nn.Module, batch: Mapping[str, Any]) -> int | None:
    """How many image tokens the language model reads in one request; None where that is not known.

    The placeholders in ``input_ids``; with tiles that are read by cross-attention (Mllama) the positions it reads,
    those of padded tiles included; in the first Molmo generation the places that ``image_input_idx`` names.
    """
    vision: Any = getattr(getattr(model, "config", None), "vision_config", None)
    pixels, places = batch.get("pixel_values"), batch.get("image_input_idx")
    if (
        batch.get("cross_attention_mask") is not None
        and isinstance(pixels, Tensor)
        and hasattr(vision, "max_num_tiles")
    ):
        images, tiles = pixels.shape[1:3]  # [1, images, tiles, channels, height, width]
        return int(images * tiles * ((vision.image_size // vision.patch_size) ** 2 + 1))
    if isinstance(places, Tensor):
        return int((places >= 0).sum())
    places = image_places(model, batch)
    return None if places is None else int(places.sum())


def image_places(model: nn.Module, batch: Mapping[str, Any]) -> Tensor | None:
    """Where image features take the place of embeddings of the prompt, shape [1, T]; None where that is not known.

    Where the placeholder stands in ``input_ids``; in Kosmos-2, which has none, where ``image_embeds_position_mask`` is
    set.
    """
    ids, mask = batch.get("input_ids"), batch.get("image_embeds_position_mask")
    if isinstance(mask, Tensor):
        return mask != 0
    placeholder = image_token_id(model)
    return None if placeholder is None or not isinstance(ids, Tensor) else ids == placeholder


def image_token_id(model: nn.Module) -> int | None:
    """The id of the image placeholder in ``input_ids``; None where the config names none."""
    config = getattr(model, "config", None)
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
