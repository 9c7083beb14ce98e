"""What a knob is."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.records import KnobValue


class Knob(ABC):
    """One thing that can be changed at run time without touching weights.

    A knob is made for one model by ``find``. It acts in one or both of two places: before ``generate()`` on the
    arguments of the image processor, during it on the model.

    Attributes:
        levels: the values offered to a controller, the full one first.
    """

    name: ClassVar[str]
    levels: tuple[KnobValue, ...]

    @classmethod
    @abstractmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """The knob of this model.

        Raises:
            KnobError: the model has no such knob; says why.
        """

    @abstractmethod
    def check(self, value: KnobValue) -> None:
        """Accept a legal value.

        Raises:
            KnobError: illegal; names the legal values.
        """

    @property
    def full(self) -> KnobValue:
        """The value that changes nothing."""
        return self.levels[0]

    def image_arguments(self, value: KnobValue) -> dict[str, Any]:
        """What the image processor is called with under this value."""
        return {}

    def applied(self, model: PreTrainedModel, value: KnobValue) -> AbstractContextManager[None]:
        """The model under this value, for the length of the ``with``; bit-equal afterwards."""
        return nullcontext()

    def refuse(self, value: KnobValue, legal: str) -> KnobError:
        """The error for an illegal value."""
        return KnobError(f"{self.name} = {value!r} is not legal on this model; legal: {legal}")
