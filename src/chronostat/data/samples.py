"""A sample: image(s), a prompt and reference answers under a stable id."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, overload

from PIL.Image import Image

from chronostat.records.messages import Turn

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question about one or more images.

    Attributes:
        id: stable name, unique in the data set.
        split: the part of the data it belongs to.
        prompt: the user's text, without any chat template; of a conversation all that the user says. The controller
            reads it.
        references: the accepted answers; empty where an answer cannot be scored.
        load_images: reads or draws the images; called once per request, outside every clock.
        image_shapes: height and width of the images in pixels, told without decoding or drawing them; None: only
            loading them tells.
        kind: the kind of question, for reports only: it never reaches the model or the controller.
        turns: the conversation; empty: one user's turn with the images and then the prompt.
        options: of a multiple choice question, in the order of their letters; they stand in the prompt too.
        image_digests: who its images are, by content; empty where that is not known.
        where: file and line that it was read from, for messages.
    """

    id: str
    split: Split
    prompt: str
    references: tuple[str, ...]
    load_images: Callable[[], tuple[Image, ...]]
    image_shapes: Callable[[], tuple[tuple[int, int], ...]] | None = None
    kind: str | None = None
    turns: tuple[Turn, ...] = ()
    options: tuple[str, ...] = ()
    image_digests: tuple[str, ...] = ()
    where: str | None = field(default=None, compare=False)

    @property
    def asked(self) -> str | tuple[Turn, ...]:
        """What a processor is given: the conversation, or the prompt where it is one turn after the images."""
        return self.turns or self.prompt

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of its images in pixels; loads them only where nothing else tells.

        Raises:
            DataError: one is missing or no picture.
        """
        if self.image_shapes is not None:
            return self.image_shapes()
        return tuple((image.height, image.width) for image in self.load_images())

    @property
    def place(self) -> str:
        """Where to look for it, for messages."""
        return self.where or f"sample {self.id}"


class DrawnSamples(Sequence[Sample], ABC):
    """The samples of a split that follow from their index: nothing is kept, indexing draws the sample anew."""

    @abstractmethod
    def draw(self, position: int) -> Sample:
        """The sample at a position, from 0 to less than the length."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        positions = range(len(self))
        if isinstance(index, slice):
            return [self.draw(position) for position in positions[index]]
        return self.draw(positions[index])  # counts negative ones from the end and refuses what is outside


class Dataset(Protocol):
    """A source of samples in three disjoint splits."""

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split, in an order that never changes."""
        ...
