"""``vision_tokens``: how many image tokens the model reads of each image, at most."""

from contextlib import AbstractContextManager
from typing import Any, Self

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.knobs.base import Knob
from chronostat.knobs.vision import find_mechanism
from chronostat.knobs.vision.mechanism import Mechanism
from chronostat.records import KnobValue


class VisionTokens(Knob):
    """Most image tokens per image, by the argument of this model's processor (``knobs/vision/``).

    The value is a number of tokens, or a share of full. The nearest number that the processor can be asked for is an
    upper bound for each image of a request: an image whose shape or size gives fewer tokens gets fewer. The setting
    keeps what was asked for, and ``Execution.image_tokens`` is the number that the model really read.
    """

    name = "vision_tokens"
    work = ("image_tokens", "vision_inputs")

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self.levels = mechanism.levels

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """Read from the processor what it takes and how it counts."""
        return cls(find_mechanism(model, processor))

    @property
    def mechanism(self) -> str:
        """Which argument of what."""
        return self._mechanism.says

    def check(self, value: KnobValue) -> None:
        """Any number from one token to the most, or a share of full of one token at least."""
        self.reached(value)

    def reached(self, value: KnobValue) -> int:
        """The nearest number that the processor can be asked for."""
        nearest = self._mechanism.nearest(value)
        if nearest is None:
            raise self.refuse(
                value,
                f"1 to {self._mechanism.most} tokens, of which the nearest of {self._mechanism.possible_words} is "
                f"taken, or a share of {self.full} below 1 that is a token at least, such as 0.25",
            )
        return nearest

    def image_arguments(self, value: KnobValue) -> dict[str, Any]:
        """What the image processor is called with; nothing for full."""
        tokens = self.reached(value)
        return {} if tokens == self.full else self._mechanism.arguments(tokens)

    def applied(self, model: PreTrainedModel, value: KnobValue) -> AbstractContextManager[None]:
        """What has to be set on processor and model as well, from preprocessing to the end of ``generate()``."""
        return self._mechanism.around(model, self.reached(value))
