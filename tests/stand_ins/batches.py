"""Requests as ``generate()`` takes them."""

from torch import Tensor

from chronostat.models.load import Vlm
from chronostat.models.prepare import prepare


def batch_of(vlm: Vlm, images, prompt: str, **image_arguments: object) -> dict[str, Tensor]:
    """Images and prompt on the model's device and in its dtype, under the image arguments that a knob would set."""
    return prepare(
        vlm.processor,
        images,
        prompt,
        device=vlm.model.device,
        dtype=vlm.model.dtype,
        image_arguments=image_arguments,
    )
