"""``vision_tokens``: how many image tokens the model reads, by the number of tiles the image is cut into."""

from typing import Any, Self

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.records import KnobValue

_SHARES = (1, 9 / 16, 1 / 4, 0)  # of the most tiles; the last one is always the fewest, usually a single tile


class VisionTokens(Knob):
    """Most image tokens per image, for processors that cut tiles (``max_patches`` of InternVL).

    With more than one tile the processor adds a thumbnail, so n tiles give ``(n + 1) * tokens_per_tile`` tokens and one
    tile gives ``tokens_per_tile``. Images whose shape fits fewer tiles get fewer tokens: the value is an upper bound.
    """

    name = "vision_tokens"

    def __init__(self, least_tiles: int, most_tiles: int, tokens_per_tile: int) -> None:
        self._tiles = range(least_tiles, most_tiles + 1)
        self._tokens_per_tile = tokens_per_tile
        offered = dict.fromkeys(max(least_tiles, round(share * most_tiles)) for share in _SHARES)
        self.levels = tuple(self._tokens(count) for count in offered)

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """Read the most tiles and the tokens of one tile from the processor."""
        if processor is None:
            raise KnobError(
                "vision_tokens: a ready batch has its image tokens already; it takes the processor to change"
            )
        image_processor = getattr(processor, "image_processor", None)
        most_tiles = getattr(image_processor, "max_patches", None)
        tokens_per_tile = getattr(processor, "image_seq_length", None)
        cuts_tiles = getattr(image_processor, "crop_to_patches", False)
        if not (isinstance(most_tiles, int) and isinstance(tokens_per_tile, int) and cuts_tiles):
            raise KnobError(
                f"vision_tokens: {type(processor).__name__} does not say that it cuts images into tiles, with "
                "image_seq_length tokens each and at most max_patches of them, as InternVL's processor does"
            )
        return cls(max(1, getattr(image_processor, "min_patches", 1)), most_tiles, tokens_per_tile)

    def check(self, value: KnobValue) -> None:
        """Any number of tokens that a number of tiles gives."""
        legal = [self._tokens(tiles) for tiles in self._tiles]
        if type(value) is not int or value not in legal:
            raise self.refuse(value, ", ".join(map(str, legal)))

    def image_arguments(self, value: KnobValue) -> dict[str, Any]:
        """``max_patches`` for the processor."""
        assert isinstance(value, int)
        return {"max_patches": max(1, value // self._tokens_per_tile - 1)}

    def _tokens(self, tiles: int) -> int:
        return self._tokens_per_tile * (tiles + 1 if tiles > 1 else 1)
