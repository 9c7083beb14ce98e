"""A sample: image(s), a prompt and reference answers under a stable id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL.Image import Image

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question about one or more images.

    Attributes:
        id: stable name, unique in the data set.
        split: the part of the data it belongs to.
        prompt: the user's text, without any chat template.
        references: the accepted answers; empty where an answer cannot be scored.
        load_images: reads or draws the images; called once per request, outside every clock.
        kind: the kind of question, for reports only: it never reaches the model or the controller.
    """

    id: str
    split: Split
    prompt: str
    references: tuple[str, ...]
    load_images: Callable[[], tuple[Image, ...]]
    kind: str | None = None


class Dataset(Protocol):
    """A source of samples in three disjoint splits."""

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split, in an order that never changes."""
        ...
