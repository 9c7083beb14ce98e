"""What the controller sees of a request: the prompt, a thumbnail and sizes. Never the kind of question.

Cheap on purpose: its cost is part of every request. The prompt goes through the model's own token embeddings; the
vision tower does not run.
"""

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.execution import BatchRequest, Request
from chronostat.models.prepare import image_token_id

THUMBNAIL_PX = 8
_SIZES = 4  # images, log width, log height, log prompt tokens


class Observer:
    """Turns a request into one vector.

    Attributes:
        size: D = width of the token embeddings + 3 * 8 * 8 thumbnail values + 4 sizes.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None) -> None:
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        self._embedding = embedding
        self._tokenizer = getattr(processor, "tokenizer", None)
        self._image_token = image_token_id(model)
        self.size = embedding.embedding_dim + 3 * THUMBNAIL_PX**2 + _SIZES

    @torch.inference_mode()
    def __call__(self, request: Request) -> Tensor:
        """Float32 vector of shape [D] on the host."""
        if isinstance(request, BatchRequest):
            ids = request.batch["input_ids"][0]
            ids = ids[ids != self._image_token] if self._image_token is not None else ids
            picture = torch.zeros(3 * THUMBNAIL_PX**2 + _SIZES - 1)
        else:
            assert self._tokenizer is not None, "samples need a processor with a tokenizer"
            ids = torch.tensor(self._tokenizer.encode(request.sample.prompt, add_special_tokens=False))
            picture = _picture(request)
        weight = self._embedding.weight
        prompt = nn.functional.embedding(ids.to(weight.device), weight).mean(dim=0)
        length = torch.tensor([float(np.log1p(len(ids)))])
        return torch.cat([prompt.float().cpu(), picture, length])


def _picture(request: Request) -> Tensor:
    """Thumbnail of the first image in [-0.5, 0.5], the number of images and the log of the first one's sides."""
    assert not isinstance(request, BatchRequest)
    first = request.images[0]
    thumbnail = first.resize((THUMBNAIL_PX, THUMBNAIL_PX), resample=Resampling.BOX)
    pixels = np.asarray(thumbnail, dtype=np.float32).reshape(-1) / 255 - 0.5
    sizes = np.log1p(np.asarray([len(request.images), *first.size], dtype=np.float32))
    return torch.from_numpy(np.concatenate([pixels, sizes]))
