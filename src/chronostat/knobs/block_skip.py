"""``block_skip``: which decoder blocks do not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.models.anatomy import SkippedBlock, anatomy_of
from chronostat.records import KnobValue


class CacheKeepingBlock(SkippedBlock):
    """Passes the hidden states on, and appends one head of zeros to its layer of the key/value cache.

    Length and masks are read from the first layer of a cache, so a layer that is left empty would shift the positions
    of all later tokens. Nothing ever attends to the appended zeros: the attention of this layer does not run.
    """

    def __init__(self, layer_index: int) -> None:
        super().__init__()
        self._layer_index = layer_index

    def forward(self, hidden_states: Tensor, *_: object, **arguments: Any) -> Tensor:  # noqa: ANN401 - as the block
        """Shape [1, q, d] in and out."""
        cache = arguments.get("past_key_values")
        if cache is not None:
            zeros = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(zeros, zeros, self._layer_index)
        return hidden_states


class BlockSkip(Knob):
    """A set of block indices to leave out, as an ascending tuple; the empty one runs all blocks.

    Offered by default: none, the central quarter and the central half of the blocks.
    """

    name = "block_skip"

    def __init__(self, block_count: int) -> None:
        self._block_count = block_count
        self.levels = tuple(dict.fromkeys(_central(block_count, block_count * part // 4) for part in (0, 1, 2)))

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """Count the decoder blocks."""
        if getattr(model.config, "is_encoder_decoder", False):
            raise KnobError(f"block_skip: {type(model).__name__} is an encoder-decoder, whose blocks cannot be skipped")
        return cls(len(anatomy_of(model).blocks))

    def check(self, value: KnobValue) -> None:
        """Any ascending tuple of block indices that leaves at least one block."""
        ascending = isinstance(value, tuple) and list(value) == sorted(set(value))
        if not ascending or len(value) >= self._block_count or not set(value) <= set(range(self._block_count)):
            raise self.refuse(
                value,
                f"ascending distinct block indices from 0 to {self._block_count - 1}, at most {self._block_count - 1}",
            )

    @contextmanager
    def applied(self, model: PreTrainedModel, value: KnobValue) -> Iterator[None]:
        """Put a block that only keeps the cache right in the place of each skipped one."""
        assert isinstance(value, tuple)
        blocks = model.get_submodule(anatomy_of(model).block_list)
        assert isinstance(blocks, nn.ModuleList)
        taken_out = {index: blocks[index] for index in value}
        try:
            for index, block in taken_out.items():
                blocks[index] = CacheKeepingBlock(_layer_index(block, index))
            yield
        finally:
            for index, block in taken_out.items():
                blocks[index] = block


def _central(count: int, width: int) -> tuple[int, ...]:
    start = (count - width) // 2
    return tuple(range(start, start + width))


def _layer_index(block: nn.Module, position: int) -> int:
    """The block's own index into the cache, where its attention names one."""
    named = (getattr(module, "layer_idx", None) for module in block.modules())
    return next((index for index in named if isinstance(index, int)), position)
