"""Keys and values at fixed addresses: what captured graphs read and write, lent to one ``generate()`` at a time."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from chronostat.errors import ExecutionError


class Room:
    """Memory for the keys and values of one request of at most ``length`` tokens.

    A layer's memory is made when it is first written, so a block that never runs has none.

    Args:
        layers: of the model's own cache.
        length: tokens that each layer holds.
        device: of the model.

    Attributes:
        keys: of each layer, shape [1, heads, length, head size].
        values: likewise.
        position: where a captured decode step writes, shape [].
        slots: 0 to length - 1.
    """

    def __init__(self, layers: int, length: int, device: torch.device) -> None:
        self.length = length
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.position = torch.zeros((), dtype=torch.long, device=device)
        self.slots = torch.arange(length, device=device)
        self._lent: ref[RoomCache] | None = None

    @property
    def is_lent(self) -> bool:
        """Whether the cache of an earlier call still exists."""
        return self._lent is not None and self._lent() is not None

    def lend(self) -> "RoomCache":
        """A cache for one call; there is room for one at a time."""
        cache = RoomCache(self, Written(0))
        self._lent = ref(cache)
        return cache

    def memory(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The memory of one layer for keys and values of shape [1, heads, q, head size]."""
        held, beside = self.keys[layer], self.values[layer]
        if held is None or beside is None:
            held = self.keys[layer] = keys.new_zeros(*keys.shape[:2], self.length, keys.shape[-1])
            beside = self.values[layer] = values.new_zeros(*values.shape[:2], self.length, values.shape[-1])
        return held, beside

    def require(self, tokens: int) -> None:
        """Accept a request of so many tokens.

        Raises:
            ExecutionError: there is no room for them. A graph would write beyond its memory.
        """
        if tokens > self.length:
            raise ExecutionError(
                f"a request of {tokens} tokens in a cache for {self.length}: this model adds tokens to its prompt that "
                "generate() does not count; run it by the engine 'eager'"
            )

    def decode_mask(self) -> Tensor:
        """Which slots the token at ``position`` attends to: its own and all before it; shape [1, 1, 1, length]."""
        return (self.slots <= self.position)[None, None, None]


class Written:
    """How many tokens the layers of one cache hold: one count for all of them, so a left-out block has none to keep.

    Args:
        tokens: a number of the host; or ``Room.position``, where a graph is captured that is to hold for any number.

    Attributes:
        end: how many there are once the forward that is running has ended.
    """

    def __init__(self, tokens: int | Tensor) -> None:
        self.tokens = tokens
        self.end = 0


class RoomLayer(CacheLayerMixin):
    """One layer of a ``RoomCache``.

    Where the host knows the count it behaves like the library's growing layer: the attention sees the tokens so far and
    nothing else, so kernels and masks are those of an ordinary call. In a captured decode step it sees all slots.
    """

    def __init__(self, room: Room, written: Written, index: int) -> None:
        super().__init__()
        self._room = room
        self._written = written
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The room makes its memory itself."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write q tokens after those that are there.

        Args:
            key_states: shape [1, heads, q, head size].
            value_states: likewise.

        Returns:
            What the attention reads: for the first tokens the arguments, which it may read in their own layout.

        Raises:
            ExecutionError: there is no room for them.
        """
        keys, values = self._room.memory(self._index, key_states, value_states)
        start = self._written.tokens
        if isinstance(start, Tensor):
            keys.index_copy_(2, start.view(1), key_states)
            values.index_copy_(2, start.view(1), value_states)
            return keys, values
        end = start + key_states.shape[-2]
        self._room.require(end)
        self._written.end = end
        keys[:, :, start:end].copy_(key_states)
        values[:, :, start:end].copy_(value_states)
        return (keys[:, :, :end], values[:, :, :end]) if start else (key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys the attention of the next q tokens sees, and the number of the first one."""
        tokens = self._written.tokens
        return (self._room.length if isinstance(tokens, Tensor) else tokens + query_length), 0

    def get_seq_length(self) -> Any:  # noqa: ANN401 - the library's static layers give a tensor as well
        """Tokens written so far."""
        return self._written.tokens

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return self._room.length


class RoomCache(Cache):
    """The cache of one call, or what a graph was captured with: layers over the memory of a ``Room``.

    Attributes:
        room: where keys and values lie.
        written: how many tokens of them there are.
    """

    def __init__(self, room: Room, written: Written) -> None:
        super().__init__(layers=[RoomLayer(room, written, index) for index in range(len(room.keys))])
        self.room = room
        self.written = written
