"""``image_keep``: which share of the image tokens enters the decoder, and how it is chosen."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import NamedTuple, Self

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.knobs.base import Knob
from chronostat.knobs.vision_tokens import VisionTokens
from chronostat.records import KnobValue
from chronostat.tokens.keeping import keeper_of
from chronostat.tokens.methods import METHODS

FULL = 1.0
_OFFERED = ("pool:0.5625", "pool:0.25", "pool:0.0625")  # the shares that vision_tokens offers


class Kept(NamedTuple):
    """A value taken apart: a method and how much it keeps, a share below 1 or a number."""

    method: str
    amount: float

    def of(self, tokens: int) -> int:
        """How many of so many image tokens."""
        if isinstance(self.amount, int):
            return min(self.amount, tokens)
        return max(1, ceil(self.amount * tokens - 0.5)) if tokens else 0


class ImageKeep(Knob):
    """Image tokens that enter the decoder, chosen after vision tower and projector; text is never left out.

    A value names a method and what it keeps of the image tokens of a request: ``pool:0.25`` a quarter of them,
    ``pool:64`` at most 64. Full is 1.0.

    Args:
        model: merges image features into its embeddings by placeholder.
    """

    name = "image_keep"
    work = ("image_tokens", "prefill_inputs")  # the second where a model does not say which tokens are of images

    def __init__(self, model: PreTrainedModel) -> None:
        self._objections = {name: method.objection(model) for name, method in METHODS.items()}
        self.levels = (FULL, *_OFFERED)

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """See that the model has placeholders, and a method that makes what takes their places."""
        keeper_of(model)
        return cls(model)

    @property
    def mechanism(self) -> str:
        """What leaves."""
        return "placeholders leave the prompt, and as many features leave what the projector hands over"

    def stands_back(self, others: Collection[str]) -> str | None:
        """Where the processor makes fewer tokens itself, the vision tower has less to do as well."""
        if VisionTokens.name not in others:
            return None
        return "vision_tokens makes fewer image tokens before the vision tower; knobs.image_keep offers this beside it"

    def check(self, value: KnobValue) -> None:
        """1.0, or a method with a share below 1 or a number."""
        self.reached(value)

    def reached(self, value: KnobValue) -> KnobValue:
        """The same value as it is usually written."""
        kept = self._kept(value)
        return FULL if kept is None else f"{kept.method}:{kept.amount}"

    def reads(self, value: KnobValue, image_tokens: int) -> int:
        """How many of the image tokens of a request enter the decoder."""
        kept = self._kept(value)
        return image_tokens if kept is None else kept.of(image_tokens)

    def applied(self, model: PreTrainedModel, value: KnobValue) -> AbstractContextManager[None]:
        """Around ``generate()``."""
        kept = self._kept(value)
        return nullcontext() if kept is None else keeper_of(model)(model, METHODS[kept.method], kept.of).installed()

    def _kept(self, value: KnobValue) -> Kept | None:
        """None for full."""
        if type(value) is float and value == FULL:
            return None
        method, _, amount = value.partition(":") if isinstance(value, str) else ("", "", "")
        number = _amount(amount)
        if method not in METHODS or number is None:
            raise self.refuse(
                value,
                f"{FULL}, or a method and what it keeps: {', '.join(METHODS)} with a share below 1 or a number of "
                "tokens, such as pool:0.25 or pool:64",
            )
        if self._objections[method] is not None:
            others = ", ".join(name for name, objection in self._objections.items() if objection is None)
            raise self.refuse(value, f"the methods {others}; {self._objections[method]}")
        return Kept(method, number)


def _amount(text: str) -> float | None:
    """A share or a number of tokens; None: neither."""
    if text.isdecimal():
        return int(text) or None
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share < 1 else None
