"""What the controller sees of a request: the prompt, a thumbnail and sizes. Never the kind of question.

Cheap on purpose: its cost is part of every request. The prompt goes through the model's own token embeddings; the
vision tower does not run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import log1p
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import DataError, ModelError
from chronostat.execution.execute import BatchRequest, Request
from chronostat.models.prepare import image_token_id

THUMBNAIL_PX = 8
_PIXELS = 3 * THUMBNAIL_PX**2
_SIZES = 4  # prompt tokens and images, width and height of the first; the logarithm of 1 + each


class Observer:
    """Turns a request into one vector: mean token embedding, thumbnail in [-0.5, 0.5], sizes.

    A ready batch has no picture to look at: its thumbnail is grey, its images and their sizes count as 0.

    Args:
        model: whose token embeddings are read.
        processor: of samples; None: only ready batches are observed.

    Attributes:
        size: D = width of the token embeddings + 3 * 8 * 8 thumbnail values + 4 sizes.

    Raises:
        ModelError: the model has no token embeddings.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None) -> None:
        self._weight = _token_embeddings(model)
        self._token_ids = None if processor is None else _encoder(processor)
        self._image_token = image_token_id(model)
        self.size = self._weight.shape[1] + _PIXELS + _SIZES

    @torch.no_grad()
    def __call__(self, request: Request) -> Tensor:
        """Float32 vector of shape [D] on the host.

        Raises:
            DataError: a ready batch without ``input_ids``.
        """
        ids = self._prompt_ids(request)
        pixels, sizes = _NO_PICTURE if isinstance(request, BatchRequest) else _picture(request.images)
        beside = torch.from_numpy(np.concatenate([pixels, [log1p(len(ids)), *sizes]], dtype=np.float32))
        prompt = self._weight[ids].sum(dim=0) / max(len(ids), 1)
        return torch.cat([prompt.float().cpu(), beside])

    def _prompt_ids(self, request: Request) -> Tensor:
        """Token ids of the prompt on the device of the embeddings, image placeholders left out."""
        if isinstance(request, BatchRequest):
            if request.batch.get("input_ids") is None:
                raise DataError(
                    f"the batch {request.id} holds no input_ids, which the controller reads; make it with input_ids "
                    "in place of inputs_embeds"
                )
            ids = request.batch["input_ids"][0]
            ids = ids[(ids >= 0) & (ids < len(self._weight))]
            return ids if self._image_token is None else ids[ids != self._image_token]
        assert self._token_ids is not None, "samples need a processor"
        return torch.tensor(self._token_ids(request.sample.prompt), dtype=torch.int64, device=self._weight.device)


def _token_embeddings(model: PreTrainedModel) -> Tensor:
    """Shape [vocabulary, width]. The first Molmo keeps those of image tokens in a second, smaller table."""
    tables = [table for table in model.get_input_embeddings().parameters() if table.ndim == 2]
    if not tables:
        raise ModelError(
            f"get_input_embeddings() of {type(model).__name__} gives no table [vocabulary, width], which the "
            "controller reads; it can be measured, not controlled"
        )
    return max(tables, key=len)


def _encoder(processor: ProcessorMixin) -> Callable[[str], list[int]]:
    """From text to token ids without special tokens; past the wrapper, which costs as much again."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return partial(tokenizer.encode, add_special_tokens=False)
    return lambda text: fast.encode(text, add_special_tokens=False).ids


_NO_PICTURE = (np.zeros(_PIXELS, dtype=np.float32), (0.0, 0.0, 0.0))


def _picture(images: Sequence[Image]) -> tuple[NDArray[np.floating], tuple[float, ...]]:
    """Thumbnail of the first image, shape [3 * 8 * 8], and the logarithms of the number of images and its sides."""
    first = images[0]
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail = first.resize(side, resample=Resampling.BOX, reducing_gap=1.0).convert("RGB")
    pixels = np.frombuffer(thumbnail.tobytes(), dtype=np.uint8).astype(np.float32) / 255 - 0.5
    return pixels, (log1p(len(images)), log1p(first.width), log1p(first.height))
