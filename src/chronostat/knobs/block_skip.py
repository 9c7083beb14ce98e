"""``block_skip``: which decoder blocks do not run."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeGuard, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.models.anatomy import SkippedBlock, anatomy_of, running_blocks
from chronostat.records import KnobValue

_KEY_VALUE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_PROBED_TOKENS = 2


class CacheKeepingBlock(SkippedBlock):
    """Passes the hidden states on, and appends one head of zeros to its layer of the key/value cache.

    Length and masks are read from the first layer of a cache, so a layer that is left empty would shift the positions
    of all later tokens. Nothing ever attends to the appended zeros: the attention of this layer does not run. Where a
    block takes and returns its keys and values itself, without a cache object, zeros of the whole length are returned.

    Args:
        block: the block whose place this takes; its plain attributes (``attention_type``) can be read here too.
        position: its index in the list of blocks.
        rest: of what the block returns after the hidden states, which are its (keys, values), the others being None;
            None if it returns the hidden states bare.
    """

    def __init__(self, block: nn.Module, position: int, rest: tuple[bool, ...] | None) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(block).items() if not name.startswith("_") and name != "forward"}
        vars(self).update(plain)
        self._layer_index = _layer_index(block, position)
        self._rest = rest

    def forward(self, hidden_states: Tensor, *others: object, **named: object) -> object:
        """Hidden states of shape [1, q, d] in and out, in the form in which the block returns them."""
        given = (*others, *named.values())
        cache = next((value for value in given if isinstance(value, Cache)), None)
        if cache is not None:
            zeros = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(zeros, zeros, self._layer_index)
        if self._rest is None:
            return hidden_states
        past = next((value[0].shape[-2] for value in given if _is_keys_and_values(value)), 0)
        zeros = hidden_states.new_zeros(hidden_states.shape[0], 1, past + hidden_states.shape[1], 1)
        return (hidden_states, *((zeros, zeros) if own else None for own in self._rest))


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
        """Count the decoder blocks, and see from one short forward what they return."""
        _require_plain_cache(model)
        _output_rest(model)
        return cls(len(anatomy_of(model).blocks))

    def check(self, value: KnobValue) -> None:
        """Any ascending tuple of block indices that leaves at least one block."""
        legal = range(self._block_count)
        if not _is_ascending(value) or not set(cast("tuple[int, ...]", value)) < set(legal):
            raise self.refuse(
                value,
                f"a tuple of ascending distinct block indices from 0 to {legal[-1]}, at most {legal[-1]} of them",
            )

    @contextmanager
    def applied(self, model: PreTrainedModel, value: KnobValue) -> Generator[None]:
        """Put a block that only keeps the cache right in the place of each skipped one."""
        assert isinstance(value, tuple)
        blocks = model.get_submodule(anatomy_of(model).block_list)
        assert isinstance(blocks, nn.ModuleList)
        rest = _output_rest(model)
        taken_out = {index: blocks[index] for index in value}
        try:
            for index, block in taken_out.items():
                blocks[index] = CacheKeepingBlock(block, index, rest)
            yield
        finally:
            for index, block in taken_out.items():
                blocks[index] = block


def _central(count: int, width: int) -> tuple[int, ...]:
    start = (count - width) // 2
    return tuple(range(start, start + width))


def _is_ascending(value: KnobValue) -> bool:
    return isinstance(value, tuple) and all(type(index) is int for index in value) and list(value) == sorted(set(value))


def _is_keys_and_values(value: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether this is a pair of tensors of shape [1, heads, tokens, head size]."""
    parts = cast("tuple[object, ...]", value) if isinstance(value, tuple | list) else ()
    return len(parts) == 2 and all(isinstance(part, Tensor) and part.ndim == 4 for part in parts)


def _layer_index(block: nn.Module, position: int) -> int:
    """The block's own index into the cache, where its attention names one."""
    named = (getattr(module, "layer_idx", None) for module in block.modules())
    return next((index for index in named if isinstance(index, int)), position)


def _require_plain_cache(model: PreTrainedModel) -> None:
    """Refuse models where a layer's cache is more than keys and values of its own.

    Raises:
        KnobError: says which and why.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise KnobError(f"block_skip: {name} is an encoder-decoder, whose blocks cannot be skipped")
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "num_kv_shared_layers", 0):
        raise KnobError(f"block_skip: blocks of {name} read the keys and values of others, so none can be skipped")
    others = set(getattr(config, "layer_types", None) or ()) - _KEY_VALUE_LAYERS
    if others:
        raise KnobError(f"block_skip: {name} has layers of type {', '.join(sorted(others))}, which keep another state")


_known: WeakKeyDictionary[nn.Module, tuple[bool, ...] | None] = WeakKeyDictionary()


def _output_rest(model: PreTrainedModel) -> tuple[bool, ...] | None:
    """Which of what the model's blocks return after the hidden states are keys and values; None if they return no more.

    Seen once for each model, in a forward of two text tokens.

    Raises:
        KnobError: the forward fails, or the blocks return something that a skipped block could not.
    """
    if model not in _known:
        output = _output_of_first_block(model)
        rest = list(output)[1:] if isinstance(output, tuple | list) else []
        own = tuple(_is_keys_and_values(part) and part[0].shape[-2] == _PROBED_TOKENS for part in rest)
        if any(part is not None and not is_own for part, is_own in zip(rest, own, strict=True)):
            raise KnobError(
                f"block_skip: the blocks of {type(model).__name__} return more than the hidden states "
                f"({', '.join(type(part).__name__ for part in rest)}), so none can be skipped"
            )
        _known[model] = None if isinstance(output, Tensor) else own
    return _known[model]


@torch.no_grad()
def _output_of_first_block(model: PreTrainedModel) -> object:
    outputs: list[object] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        outputs.append(output)

    handle = running_blocks(model, anatomy_of(model))[0].register_forward_hook(keep)
    ids = torch.zeros(1, _PROBED_TOKENS, dtype=torch.long, device=model.device)
    arguments: Mapping[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True}
    try:
        model(**arguments)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise KnobError(
            f"block_skip: cannot see what the blocks of {type(model).__name__} return, its forward of two text tokens "
            f"fails ({type(error).__name__}: {error})"
        ) from error
    finally:
        handle.remove()
    if not outputs:
        raise KnobError(f"block_skip: the blocks of {type(model).__name__} are not called as modules")
    return outputs[0]
