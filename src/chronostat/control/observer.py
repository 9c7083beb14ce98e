"""What the controller sees of a request: the prompt and its size under each setting. Never the kind of question.

Cheap on purpose: its cost is part of every request. The prompt goes through the model's own token embeddings; no image
is resized and the vision tower does not run. A thumbnail of the image was tried and left out: it taught nothing that a
few thousand executions could tell from noise (docs/controller.md).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import DataError, ModelError
from chronostat.evidence.linear import Floats
from chronostat.evidence.observation import Observation
from chronostat.execution.execute import BatchRequest, Request
from chronostat.execution.sizes import RequestSizes
from chronostat.execution.trials import TrialInput
from chronostat.knobs.space import ActionSpace
from chronostat.models.prepare import image_token_id


class Observer:
    """Turns a request into an observation.

    Args:
        model: whose token embeddings are read.
        processor: of samples; None: only ready batches are observed.
        space: the settings under which tokens are counted.

    Attributes:
        width: D, of the token embeddings.

    Raises:
        ModelError: the model has no token embeddings.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None, space: ActionSpace) -> None:
        weight = _token_embeddings(model).detach()
        self._on_host = weight.numpy() if weight.device.type == "cpu" and weight.dtype == torch.float32 else None
        self._weight = weight
        self._token_ids = None if processor is None else _encoder(processor)
        self._image_token = image_token_id(model)
        self._sizes = RequestSizes(model, processor, space)
        self.width = weight.shape[1]

    def __call__(self, request: Request) -> Observation:
        """What is seen of a request whose images are at hand.

        Raises:
            DataError: a ready batch without ``input_ids``.
        """
        if isinstance(request, BatchRequest):
            ids = self._batch_ids(request)
            return Observation(prompt=self._mean_embedding(ids), tokens=np.nan_to_num(self._sizes(request), nan=1.0))
        return self._of_sample(request.sample.prompt, [(image.height, image.width) for image in request.images])

    def seen(self, trial_input: TrialInput) -> Observation:
        """The same of a sample that is not executed; its images are loaded only where nothing else tells their size.

        Raises:
            DataError: a ready batch without ``input_ids``, or an image that cannot be read.
        """
        if isinstance(trial_input, BatchRequest):
            return self(trial_input)
        return self._of_sample(trial_input.prompt, trial_input.shapes())

    def _of_sample(self, prompt: str, shapes: Sequence[tuple[int, int]]) -> Observation:
        assert self._token_ids is not None, "samples need a processor"
        ids = self._token_ids(prompt)
        return Observation(prompt=self._mean_embedding(ids), tokens=self._sizes.of(tuple(shapes), len(ids)))

    def _mean_embedding(self, ids: list[int]) -> Floats:
        if not ids:
            return np.zeros(self.width)
        if self._on_host is not None:
            return self._on_host[ids].mean(axis=0, dtype=np.float64)
        return self._weight[torch.tensor(ids, device=self._weight.device)].float().mean(dim=0).double().cpu().numpy()

    def _batch_ids(self, request: BatchRequest) -> list[int]:
        """Token ids of a ready batch, image placeholders left out."""
        if request.batch.get("input_ids") is None:
            raise DataError(
                f"the batch {request.id} holds no input_ids, which the controller reads; make it with input_ids "
                "in place of inputs_embeds"
            )
        ids: list[int] = request.batch["input_ids"][0].tolist()
        return [i for i in ids if 0 <= i < len(self._weight) and i != self._image_token]


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
