"""A mechanism: which numbers of image tokens are possible, and what is set for each of them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any

from transformers import PreTrainedModel

from chronostat.records import KnobValue

_SHARES = (9 / 16, 1 / 4, 0)  # of the most tiles; the last one is always the fewest, usually a single tile
_AREA_SHARES = (9 / 16, 1 / 4, 1 / 16)
_USUAL_TOKENS = 1024  # of a picture of about a megapixel: where more are allowed, shares of them would bind nowhere

Arguments = dict[str, Any]


def _nothing(model: PreTrainedModel, value: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """How a target of image tokens per image is reached with one kind of processor.

    Attributes:
        says: what is set and on what, in a few words.
        full: the most image tokens of an image as the processor is; asking for it changes nothing.
        levels: the values offered to a controller, full first.
        legal: the possible values, as ranges; a single number is a range of one.
        arguments: what the image processor is called with under a legal value below or above full.
        around: model and processor under a value, from preprocessing to the end of ``generate()``.
    """

    says: str
    full: int
    levels: tuple[int, ...]
    legal: tuple[range, ...]
    arguments: Callable[[int], Arguments]
    around: Callable[[PreTrainedModel, int], AbstractContextManager[None]] = _nothing

    def nearest(self, asked: KnobValue) -> int | None:
        """The possible number nearest to what is asked for, the smaller of two; None: it is illegal.

        Args:
            asked: a number of tokens from 1 to the most, or a share of full, a float below 1 that is a token at least.
        """
        if type(asked) is not int and not (isinstance(asked, float) and asked < 1):
            return None
        tokens = asked * self.full if isinstance(asked, float) else asked
        if not 1 <= tokens <= self.most:
            return None
        whole = ceil(tokens - 0.5)
        possible = (min(max(whole, span[0]), span[-1]) for span in self.legal)
        return min(possible, key=lambda number: (abs(number - tokens), number))

    @property
    def most(self) -> int:
        """The largest possible number."""
        return self.legal[-1][-1]

    @property
    def possible_words(self) -> str:
        """The possible numbers for people, in ascending order."""
        return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in self.legal)


def steps(
    *,
    says: str,
    full: int,
    tokens: Mapping[int, int],
    arguments: Callable[[int], Arguments],
    around: Callable[[PreTrainedModel, int], AbstractContextManager[None]] = _nothing,
    usual: int | None = None,
) -> Mechanism:
    """A mechanism in steps.

    Args:
        says: what is set and on what.
        full: as of the mechanism; one of ``tokens``.
        tokens: the most image tokens of an image, by number of tiles in ascending order.
        arguments: from a number of tiles; not called for that of ``full``.
        around: likewise.
        usual: tiles of an ordinary image, where far more are allowed; the offered values are shares of that.
    """
    units = {count: tiles for tiles, count in tokens.items()}
    most = max(tokens)
    reference = min(most, usual or most)

    def given(value: int) -> Arguments:
        return {} if value == full else arguments(units[value])

    def surrounded(model: PreTrainedModel, value: int) -> AbstractContextManager[None]:
        return nullcontext() if value == full else around(model, units[value])

    beside = () if full == tokens[most] else (most,)
    offered = (*beside, *(_at_most(tokens, max(min(tokens), round(share * reference))) for share in _SHARES))
    return Mechanism(
        says=says,
        full=full,
        levels=tuple(dict.fromkeys([full, *(tokens[tiles] for tiles in offered)])),
        legal=tuple(range(count, count + 1) for count in sorted(units)),
        arguments=given,
        around=surrounded,
    )


def span(*, says: str, full: int, least: int, arguments: Callable[[int], Arguments]) -> Mechanism:
    """A mechanism for every number from the fewest to full.

    Args:
        says: what is set and on what.
        full: as of the mechanism.
        least: the fewest image tokens that the processor makes of an image by itself.
        arguments: from a number of image tokens below full.
    """
    least = min(least, full)
    return Mechanism(
        says=says,
        full=full,
        levels=span_levels(full, least),
        legal=(range(least, full + 1),),
        arguments=lambda value: {} if value == full else arguments(value),
    )


def span_levels(full: int, least: int) -> tuple[int, ...]:
    """Full, and 9/16, 1/4 and 1/16 of it, or of 1024 where full is more; never fewer than the fewest."""
    usual = min(full, _USUAL_TOKENS)
    return tuple(dict.fromkeys([full, *(max(least, round(share * usual)) for share in _AREA_SHARES)]))


def _at_most(tokens: Mapping[int, int], tiles: int) -> int:
    return max(count for count in tokens if count <= tiles)
