"""The stand-in of a skipped decoder block: hidden states pass through, the cache stays right."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from chronostat.engine.cache import RoomCache
from chronostat.knobs.block_form import BlockForm, Part, Slot, is_keys_and_values
from chronostat.models.anatomy import anatomy_of
from chronostat.models.blocks import SkippedBlock


class CacheKeepingBlock(SkippedBlock):
    """Passes the hidden states on, and writes zeros into its layer of the cache as the block would write its state.

    Length and masks are read from the first layer of a cache, and whether there is a state from the last one that keeps
    one, so a layer that is left empty would shift the positions or the masks of all later tokens. Nothing ever reads
    the zeros: the attention of this layer does not run. Where a block takes and returns its keys and values itself,
    without a cache object, zeros of the whole length are returned.

    Args:
        block: the block whose place this takes; its attributes (``attention_type``) can be read here too.
        position: its index in the list of blocks.
        form: of what the block returns.
    """

    def __init__(self, block: nn.Module, position: int, form: BlockForm) -> None:
        super().__init__()
        vars(self)["_skipped"] = block  # no submodule: its weights and its parts do not belong to the model now
        self._layer_index = _layer_index(block, position)
        self._form = form

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the block has
        """What a model reads of its blocks from outside."""
        if name == "_skipped":  # not yet made
            raise AttributeError(name)
        return getattr(self._skipped, name)

    def forward(self, hidden_states: Tensor, *others: object, **named: object) -> object:
        """Hidden states of shape [..., 1, q, ..., d] in and out, in the form in which the block returns them."""
        given = {**dict(enumerate((hidden_states, *others))), **named}
        cache = next((value for value in given.values() if isinstance(value, Cache)), None)
        if cache is not None and not isinstance(cache, RoomCache):  # the engine's counts its tokens once for all layers
            self._keep(cache, hidden_states)
        if self._form.rest is None:
            return hidden_states
        return (hidden_states, *(self._part(part, given, hidden_states) for part in self._form.rest))

    def _part(self, part: Part, given: Mapping[Slot, object], hidden_states: Tensor) -> object:
        if isinstance(part, tuple):
            return given.get(part[1])
        return self._keys_and_values(given, hidden_states) if part == "keys and values" else None

    def _keep(self, cache: Cache, hidden_states: Tensor) -> None:
        """Write zeros for q tokens into this layer of the cache, whatever it keeps."""
        axis = self._form.token_axis
        batch, tokens = hidden_states.shape[axis - 1], hidden_states.shape[axis]
        cache = getattr(cache, "self_attention_cache", cache)  # of an encoder-decoder; the encoder's is the block's own
        index = self._layer_index
        layer = cache.layers[index] if index < len(cache.layers) else None  # None: it is made when it is written
        if hasattr(layer, "update_conv_state"):
            for state in range(getattr(layer, "number_of_states", 1)):
                more = {"state_idx": state} if state else {}  # older versions know one state only
                cache.update_conv_state(hidden_states.new_zeros(batch, 1, 1), index, **more)
        if layer is None or isinstance(layer, CacheLayerMixin):
            zeros = hidden_states.new_zeros(batch, 1, tokens, 1)
            cache.update(zeros, zeros, index)
        if hasattr(layer, "update_indexer"):
            cache.update_indexer(hidden_states.new_zeros(batch, tokens, 1), index)

    def _keys_and_values(self, given: Mapping[Slot, object], hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        axis = self._form.token_axis
        past = next((value[0].shape[-2] for value in given.values() if is_keys_and_values(value)), 0)
        zeros = hidden_states.new_zeros(hidden_states.shape[axis - 1], 1, past + hidden_states.shape[axis], 1)
        return zeros, zeros


@contextmanager
def skipped_blocks(model: PreTrainedModel, indices: Iterable[int], forms: Sequence[BlockForm]) -> Generator[None]:
    """Stand-ins in the places of some decoder blocks, for the length of the ``with``."""
    blocks = model.get_submodule(anatomy_of(model).block_list)
    assert isinstance(blocks, nn.ModuleList)
    taken_out = {index: blocks[index] for index in indices}
    try:
        for index, block in taken_out.items():
            blocks[index] = CacheKeepingBlock(block, index, forms[index])
        yield
    finally:
        for index, block in taken_out.items():
            blocks[index] = block


def _layer_index(block: nn.Module, position: int) -> int:
    """The block's own index into the cache, where its attention names one."""
    named = (getattr(module, "layer_idx", None) for module in block.modules())
    return next((index for index in named if isinstance(index, int)), position)
