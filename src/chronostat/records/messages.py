"""What is said in a conversation with a model: turns, each text with images at named places."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: who says it.
        parts: text, and the numbers of images from 0 at their places, in order.
    """

    role: Role
    parts: tuple[str | int, ...]

    @property
    def text(self) -> str:
        """What is said without the images."""
        return "".join(part for part in self.parts if isinstance(part, str))
