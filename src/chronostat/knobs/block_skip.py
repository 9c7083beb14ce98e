"""``block_skip``: which decoder blocks do not run."""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self, cast

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.knobs.block_form import block_forms
from chronostat.knobs.block_limits import BlockLimits, block_limits
from chronostat.knobs.cache_keeping import skipped_blocks
from chronostat.models.anatomy import anatomy_of
from chronostat.records import KnobValue

_OFFERED_QUARTERS = (0, 1, 2)


class BlockSkip(Knob):
    """A set of block indices to leave out, as an ascending tuple; the empty one runs all blocks.

    Offered by default: none, a quarter and half of the blocks: the central ones, or the least important ones where
    ``knobs.block_order`` orders them.

    Args:
        block_count: decoder blocks of the model.
        block_list: where they are, for people.
        limits: which of them have to run.
    """

    name = "block_skip"
    work = ("blocks_run",)
    options: ClassVar[tuple[str, ...]] = ("block_order",)

    def __init__(self, block_count: int, block_list: str = "the decoder", limits: BlockLimits | None = None) -> None:
        self._block_count = block_count
        self._block_list = block_list
        self._limits = limits or BlockLimits()
        self.skippable = tuple(index for index in range(block_count) if index not in self._limits.producers)
        self.levels = self._legal(_central(self.skippable, count) for count in self._counts(len(self.skippable)))

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """Count the decoder blocks, and see from a short forward what they return and which of them have to run."""
        limits = block_limits(model)
        anatomy = anatomy_of(model)
        return cls(len(anatomy.blocks), anatomy.block_list, limits)

    @property
    def mechanism(self) -> str:
        """Which list the blocks are taken out of."""
        return f"taken out of the {self._block_count} decoder blocks of {self._block_list}"

    def check(self, value: KnobValue) -> None:
        """Any ascending tuple of skippable block indices that leaves at least one block."""
        last = self._block_count - 1
        if not _is_ascending(value) or not set(cast("tuple[int, ...]", value)) < set(range(last + 1)):
            legal = f"a tuple of ascending distinct block indices from 0 to {last}, at most {last} of them"
            raise self.refuse(value, legal if isinstance(value, tuple) else f"{legal}, one alone as in block_skip=2,")
        objection = self._limits.objection(cast("tuple[int, ...]", value))
        if objection:
            raise self.refuse(
                value, f"a tuple of ascending distinct indices out of {list(self.skippable)}; here {objection}"
            )

    def offered(self, options: Mapping[str, object]) -> tuple[KnobValue, ...]:
        """The default values, by importance where ``block_order`` is given.

        Raises:
            KnobError: the order is not one of this model's blocks.
        """
        order = options.get("block_order")
        if order is None:
            return self.levels
        given = list(cast("Sequence[int]", order))
        if not given or len(set(given)) != len(given) or not set(given) <= set(range(self._block_count)):
            raise KnobError(
                f"knobs.block_order = {given} does not order the blocks of this model; name distinct blocks from 0 to "
                f"{self._block_count - 1}, the least important first"
            )
        return tuple(dict.fromkeys(self.first_of(given, count) for count in self._counts(len(given))))

    def objection_to(self, skipped: Collection[int]) -> str | None:
        """Why these blocks cannot be skipped together; None if they can."""
        return self._limits.objection(skipped)

    def first_of(self, order: Sequence[int], count: int) -> tuple[int, ...]:
        """The first ``count`` blocks of an order that can be skipped together, ascending; fewer where no more can."""
        chosen: list[int] = []
        for _ in range(count):
            others = (index for index in order if index not in chosen)
            chosen += [index for index in others if self.objection_to([*chosen, index]) is None][:1]
        return tuple(sorted(chosen))

    @contextmanager
    def applied(self, model: PreTrainedModel, value: KnobValue) -> Generator[None]:
        """Put a block that only keeps the cache right in the place of each skipped one."""
        assert isinstance(value, tuple)
        with skipped_blocks(model, value, block_forms(model).forms):
            yield

    def _counts(self, most: int) -> list[int]:
        """How many blocks the default values skip."""
        return [min(self._block_count * part // 4, most) for part in _OFFERED_QUARTERS]

    def _legal(self, values: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        return tuple(value for value in dict.fromkeys(values) if self._limits.objection(value) is None)


def _central(indices: Sequence[int], width: int) -> tuple[int, ...]:
    start = (len(indices) - width) // 2
    return tuple(indices[start : start + width])


def _is_ascending(value: KnobValue) -> bool:
    return isinstance(value, tuple) and all(type(index) is int for index in value) and list(value) == sorted(set(value))
