"""Where images stand in what is said: marks in a prompt, and messages as chat templates take them."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from chronostat.records.messages import Role, Turn

_PLACE = re.compile(r"<image(?: ?(\d+))?>")


class Part(BaseModel):
    """A piece of a message: text, or an image: a file, one of the row's by its number from 1, or the row's next one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "image"]
    text: str | None = None
    image: str | StrictInt | None = None


class Message(BaseModel):
    """One message: a text, in which ``<image>`` is the place of an image, or a list of parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    content: str | Annotated[list[Part], Field(min_length=1)]

    @property
    def images(self) -> Sequence[str]:
        """The files that its parts name."""
        return [part.image for part in self.parts if isinstance(part.image, str)]

    @property
    def parts(self) -> Sequence[Part]:
        """None where it is a text."""
        return () if isinstance(self.content, str) else self.content


def names_places(text: str) -> bool:
    """Whether a prompt with this text says where images stand."""
    return _PLACE.search(text) is not None


def places_of(prompt: str, images: int) -> tuple[str | int, ...]:
    """Text and images of a prompt in order: at its marks, or before it where it has none.

    ``<image 1>`` is the first image; ``<image>`` without a number is the next one.

    Raises:
        ValueError: the marks are not each image once.
    """
    parts = tuple(_parts(prompt, iter(range(images + 1))))
    numbers = [part for part in parts if isinstance(part, int)]
    if not numbers:
        return (*range(images), prompt)
    _require_each_once(numbers, images, "the prompt")
    return parts


def turns_of(messages: Sequence[Message], images: int) -> tuple[Turn, ...]:
    """A conversation, its images in order.

    Where parts are images, the text of a part is text, whatever it looks like; elsewhere marks are places.

    Args:
        messages: of the row; the images that their parts name come after those of the row itself.
        images: how many there are in all.

    Raises:
        ValueError: the places are not each image once, a message is empty, or it does not end with what the user says.
    """
    if messages[-1].role != "user":
        raise ValueError(f"messages: the last one is the user's, whom the model answers, not the {messages[-1].role}'s")
    own = images - sum(len(message.images) for message in messages)
    unnamed, named = iter(range(own + 1)), iter(range(own, images))
    has_marks = all(part.type == "text" for message in messages for part in message.parts)
    turns: list[Turn] = []
    for place, message in enumerate(messages):
        if isinstance(message.content, str):
            parts = tuple(_parts(message.content, unnamed))
        else:
            parts = tuple(p for each in message.content for p in _of_part(each, unnamed, named, has_marks=has_marks))
        if not parts:
            raise ValueError(f"messages.{place}: what the {message.role} says is empty; leave the message out")
        turns.append(Turn(role=message.role, parts=parts))
    numbers = [part for turn in turns for part in turn.parts if isinstance(part, int)]
    if not numbers:  # before the first thing that the user says
        first = next(place for place, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn(role="user", parts=(*range(images), *turns[first].parts))
        return tuple(turns)
    _require_each_once(numbers, images, "messages")
    return tuple(turns)


def _of_part(part: Part, unnamed: Iterator[int], named: Iterator[int], *, has_marks: bool) -> Iterator[str | int]:
    if part.type == "image":
        yield part.image - 1 if isinstance(part.image, int) else next(unnamed if part.image is None else named, -1)
    elif has_marks:
        yield from _parts(part.text or "", unnamed)
    elif part.text:
        yield part.text


def _parts(text: str, following: Iterator[int]) -> Iterator[str | int]:
    end = 0
    for mark in _PLACE.finditer(text):
        if text[end : mark.start()]:
            yield text[end : mark.start()]
        yield int(mark[1]) - 1 if mark[1] else next(following, -1)
        end = mark.end()
    if text[end:]:
        yield text[end:]


def _require_each_once(numbers: Sequence[int], images: int, what: str) -> None:
    if sorted(numbers) != list(range(images)):
        raise ValueError(
            f"{what}: there are {images} images and {len(numbers)} places; name each image once, as <image 1> to "
            f"<image {images}>, or none: then they stand before the prompt"
        )
