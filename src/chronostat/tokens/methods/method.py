"""What a method of choosing image tokens is."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from chronostat.tokens.selection import Picture, Selection


class Method(ABC):
    """Chooses image tokens of what one call encodes; made anew for each call.

    Args:
        model: whose tokens these are.
        text_ids: of the prompt without its image placeholders, shape [L].
    """

    name: ClassVar[str]

    def __init__(self, model: PreTrainedModel, text_ids: Tensor) -> None:
        self._model = model
        self._text_ids = text_ids

    @classmethod
    def objection(cls, model: PreTrainedModel) -> str | None:
        """Why it cannot choose on a model, in words; None if it can, or if only a call can show that."""
        return None

    def read(self, text_ids: Tensor) -> None:
        """Choose for another prompt from now on, shape [L]."""
        self._text_ids = text_ids

    def encoding(self) -> AbstractContextManager[None]:
        """Around the encoding of the images, for what has to be seen there."""
        return nullcontext()

    @abstractmethod
    def choose(self, picture: Picture, count: int) -> Selection:
        """``count`` of the N tokens of one picture, 1 <= ``count`` < N.

        Raises:
            KnobError: what it chooses by is not there.
        """
