"""``moe_topk``: how many experts each token is routed to."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Self, cast

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.knobs.routing import RoutedBlock, routed_blocks, routed_to
from chronostat.records import KnobValue


class MoeTopk(Knob):
    """Experts per token: one number for all decoder blocks with experts, or a tuple of one for each of them.

    Each number is capped at the block's trained one. A block whose experts run for every token whatever its router
    chooses does not count as one with experts.

    Args:
        blocks: the blocks with experts, in order.
    """

    name = "moe_topk"
    work = ("experts_per_token",)
    options: ClassVar[tuple[str, ...]] = ("moe_keep_first",)

    def __init__(self, blocks: Sequence[RoutedBlock]) -> None:
        self._blocks = tuple(blocks)
        self.trained = tuple(block.trained for block in self._blocks)
        halves = [max(self.trained)]
        while halves[-1] > 1:
            halves.append(halves[-1] // 2)
        self.levels: tuple[KnobValue, ...] = tuple(halves)

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """Read the trained numbers of experts, and see from short forwards that fewer are less work."""
        return cls(routed_blocks(model))

    @property
    def mechanism(self) -> str:
        """What it sets, and in how many blocks."""
        fields = dict.fromkeys(
            f"{place.field} of the configuration" if place.in_config else place.field
            for block in self._blocks
            for place in block.places
        )
        return f"{', '.join(fields)} of the routers in {len(self._blocks)} decoder blocks"

    def check(self, value: KnobValue) -> None:
        """A number from 1 to the largest trained one, or for each block with experts one up to its trained one."""
        most = max(self.trained)
        legal = (
            all(type(k) is int and 1 <= k <= trained for k, trained in zip(value, self.trained, strict=True))
            if isinstance(value, tuple) and len(value) == len(self.trained)
            else type(value) is int and 1 <= value <= most
        )
        if not legal:
            each = "" if min(self.trained) == most else f", at most {', '.join(map(str, self.trained))}"
            raise self.refuse(
                value,
                f"1 to {most} experts per token, or a tuple of one such number for each of the {len(self.trained)} "
                f"decoder blocks with experts{each}",
            )

    def offered(self, options: Mapping[str, object]) -> tuple[KnobValue, ...]:
        """The trained number and its halves; with ``moe_keep_first`` the first block keeps its own in all of them.

        Raises:
            KnobError: ``moe_keep_first`` with a single block.
        """
        if not options.get("moe_keep_first"):
            return self.levels
        if len(self.trained) == 1:
            raise KnobError("moe_topk: one block has experts, so knobs.moe_keep_first leaves none to change")
        kept = (self.keeping_first(value) for value in self.levels[1:] if isinstance(value, int))
        return (self.full, *dict.fromkeys(value for value in kept if value != self.trained))

    def keeping_first(self, topk: int) -> tuple[int, ...]:
        """The tuple that leaves the first block as trained and caps the others at ``topk``."""
        first, *others = self.trained
        return (first, *(min(topk, trained) for trained in others))

    def effect(self, value: KnobValue, setting: Mapping[str, KnobValue]) -> Hashable:
        """Experts per token in each block that runs."""
        skipped = setting.get("block_skip", ())
        assert isinstance(skipped, tuple)
        return tuple(
            (block.index, topk)
            for block, topk in zip(self._blocks, self._each(value), strict=True)
            if block.index not in skipped
        )

    def applied(self, model: PreTrainedModel, value: KnobValue) -> AbstractContextManager[None]:
        """Set the number of every router in the decoder blocks."""
        return routed_to(model, dict(zip(self._blocks, self._each(value), strict=True)))

    def _each(self, value: KnobValue) -> tuple[int, ...]:
        numbers = value if isinstance(value, tuple) else (cast("int", value),) * len(self.trained)
        return tuple(min(number, trained) for number, trained in zip(numbers, self.trained, strict=True))
