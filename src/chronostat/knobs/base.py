"""What a knob is."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.measure.work import WorkName
from chronostat.records import KnobValue


class Knob(ABC):
    """One thing that can be changed at run time without touching weights.

    A knob is made for one model by ``find``. It acts in one or both of two places: before ``generate()`` on the
    arguments of the image processor, during it on the model.

    Attributes:
        levels: the values offered to a controller, the full one first.
        work: the counts of ``measure/work.py`` that other values than full change; one of them proves that it acts.
        options: fields of the configuration's section ``[knobs]`` that shape the values offered by default.
    """

    name: ClassVar[str]
    work: ClassVar[tuple[WorkName, ...]] = ("prefill_inputs", "forwards")
    options: ClassVar[tuple[str, ...]] = ()
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

    def reached(self, value: KnobValue) -> KnobValue:
        """The value that a legal one comes to, where not all can be met exactly; an action space holds these.

        Raises:
            KnobError: illegal; names the legal values.
        """
        self.check(value)
        return value

    @property
    def full(self) -> KnobValue:
        """The value that changes nothing."""
        return self.levels[0]

    @property
    def mechanism(self) -> str:
        """What it changes on this model, in one line; what the class says of itself if it does not say more."""
        return (type(self).__doc__ or self.name).strip().partition("\n")[0].rstrip(".")

    def offered(self, options: Mapping[str, object]) -> tuple[KnobValue, ...]:
        """The values offered to a controller under some options of the configuration, the full one first.

        Raises:
            KnobError: an option that does not fit this model.
        """
        return self.levels

    def stands_back(self, others: Collection[str]) -> str | None:
        """Why it is offered only where a configuration names its values, beside some other knobs; None: by itself."""
        return None

    def effect(self, value: KnobValue, setting: Mapping[str, KnobValue]) -> Hashable:
        """What a value comes to beside the other knobs' values; values of equal effect are one to the action space."""
        return value

    def objection(self, value: KnobValue, setting: Mapping[str, KnobValue]) -> str | None:
        """Why a legal value is illegal beside the other knobs' values; None if it is not."""
        return None

    def image_arguments(self, value: KnobValue) -> dict[str, Any]:
        """What the image processor is called with under this value."""
        return {}

    def reads(self, value: KnobValue, image_tokens: int) -> int:
        """How many of the image tokens of a ready batch the language model reads under this value."""
        return image_tokens

    def applied(self, model: PreTrainedModel, value: KnobValue) -> AbstractContextManager[None]:
        """The model under this value, for the length of the ``with``; bit-equal afterwards.

        It surrounds the preprocessing of a sample as well as ``generate()``, so a knob may set the processor that it
        was found with.
        """
        return nullcontext()

    def refuse(self, value: KnobValue, legal: str) -> KnobError:
        """The error for an illegal value."""
        return KnobError(f"{self.name} = {value!r} is not legal on this model; legal: {legal}")
