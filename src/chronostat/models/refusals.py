"""Whose fault it is where a processor refuses a request: the request's, its chat template's, or a missing package's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL.Image import Image
from torch import Tensor
from transformers import ProcessorMixin

from chronostat.errors import DataError, ModelError
from chronostat.models.prepare import conversation_of, prepare
from chronostat.records.messages import Turn

# what processors raise for requests that they do not take
_REFUSALS = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, ImportError, TemplateError)
# what processors and their tokenizers call the texts that stand for images
_MARKS = (
    *("image_token", "video_token", "fake_image_token", "global_image_token", "boi_token", "eoi_token"),
    *("image_start_token", "image_end_token", "start_image_token", "end_image_token"),
    *("vision_start_token", "vision_end_token", "start_of_img_token", "end_of_img_token"),
)


def try_prepare(
    processor: ProcessorMixin,
    images: Sequence[Image],
    asked: str | Sequence[Turn],
    *,
    model: str,
    request: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Mapping[str, Tensor]:
    """A request prepared once, before anything is measured, so that what is refused is said at once and in words.

    Args:
        processor: the model's own.
        images: of the request.
        asked: prompt or conversation.
        model: name of the model, for messages.
        request: name of the request, for messages.
        device: where the tensors go.
        dtype: type of the pixel values.

    Raises:
        ModelError: a package is missing, or the chat template leaves images out.
        DataError: the template or the processor refuses the request.
    """
    try:
        batch = prepare(processor, images, asked, device=device, dtype=dtype, image_arguments={})
    except _REFUSALS as error:
        raise _refusal(processor, images, asked, error, model, request) from error
    if not any(tensor.is_floating_point() for tensor in batch.values()):
        raise _leaves_images_out(model)
    return batch


def missing_package(model: str, error: ImportError) -> ModelError:
    """What to say where a processor needs a package that is not installed."""
    said = " ".join(str(error).split())
    return ModelError(f"the processor of {model} needs a package that is not installed ({said}); install it")


def _refusal(
    processor: ProcessorMixin,
    images: Sequence[Image],
    asked: str | Sequence[Turn],
    error: Exception,
    model: str,
    request: str,
) -> DataError | ModelError:
    said = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ImportError):
        return missing_package(model, error)
    if getattr(processor, "process", None) is not None:
        return DataError(f"the processor of {model} refuses {request} ({said}); change its prompt or image")
    text = _rendered(processor, images, asked)
    if text is None:
        return DataError(
            f"the chat template of {model} refuses {request} ({said}); change its messages, or what the template is "
            "told with model.template"
        )
    if text == _rendered(processor, (), _without_images(asked)):
        return _leaves_images_out(model)
    return DataError(f"the processor of {model} refuses {request} ({said}); change its prompt or image")


def _leaves_images_out(model: str) -> ModelError:
    return ModelError(
        f"the chat template of {model} leaves images out: it writes the same text with an image and without; give the "
        "model's processor a template that places images"
    )


def _without_images(asked: str | Sequence[Turn]) -> Sequence[Turn]:
    turns = [Turn(role="user", parts=(asked,))] if isinstance(asked, str) else asked
    return [Turn(role=turn.role, parts=tuple(p for p in turn.parts if isinstance(p, str))) for turn in turns]


def _rendered(processor: ProcessorMixin, images: Sequence[Image], asked: str | Sequence[Turn]) -> str | None:
    """The text that the template writes; None: it refuses."""
    template: Any = processor
    try:
        return template.apply_chat_template(conversation_of(images, asked), add_generation_prompt=True, tokenize=False)
    except _REFUSALS:
        return None


def image_marks(processor: ProcessorMixin) -> frozenset[str]:
    """The texts that a processor takes for a part of an image or video wherever they stand in a prompt."""
    holders: tuple[Any, ...] = (processor, getattr(processor, "tokenizer", None))
    marks = {getattr(holder, name, None) for holder in holders for name in _MARKS}
    return frozenset(mark for mark in marks if isinstance(mark, str) and mark)
