"""The queries and keys of one attention, read while it runs by its own fast kernels."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import register_dataclass

from chronostat.errors import KnobError
from chronostat.measure.replays import collecting_in_replays

_ROWS = 1024  # queries whose weights are held at a time
_FUSED = functional.scaled_dot_product_attention
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


@dataclass(kw_only=True)
class Attended:
    """One attention over one sequence.

    Attributes:
        queries: shape [heads, M, head size].
        keys: shape [heads, M', head size]; of grouped queries already repeated.
        scale: of their products.
        mask: added to the products, broadcast to [heads, M, M']; None: nothing is masked.
        weights: where the attention made them itself, shape [heads, M, M']; the others are empty then.
    """

    queries: Tensor
    keys: Tensor
    scale: float
    mask: Tensor | None = None
    weights: Tensor | None = None

    @property
    def length(self) -> int:
        """M, the queries."""
        return (self.queries if self.weights is None else self.weights).shape[-2]

    def of_rows(self, start: int, stop: int) -> Tensor:
        """The weights of some queries, mean over heads, shape [stop - start, M']."""
        if self.weights is not None:
            return self.weights[:, start:stop].float().mean(dim=0)
        rows, nothing = self.queries[:, start:stop], self.queries.new_zeros(())
        scores = torch.baddbmm(nothing, rows, self.keys.transpose(-1, -2), beta=0, alpha=self.scale)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else self.mask[..., start:stop, :]
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1, dtype=torch.float32).mean(dim=0)


register_dataclass(Attended)  # so that a replay can bring new ones


@dataclass(kw_only=True)
class Heard:
    """What was heard of one block.

    Attributes:
        attended: one for each image, in their order.
    """

    attended: list[Attended] = field(default_factory=list[Attended])

    def require(self, block: nn.Module) -> None:
        """Accept a block that has run and attended.

        Raises:
            KnobError: no attention of it was heard.
        """
        if not self.attended:
            raise KnobError(
                f"no attention was heard in {type(block).__name__}: it attends by neither scaled_dot_product_attention "
                "of torch nor a softmax over shape [batch, heads, queries, keys]; choose image tokens by another method"
            )

    def received(self, index: int, *, from_first: bool) -> Tensor:
        """The attention that each token of an image gets: from the first one, or the mean over all; shape [M]."""
        one = self.attended[index]
        if from_first:
            return one.of_rows(0, 1)[0]
        blocks = (
            one.of_rows(start, min(start + _ROWS, one.length)).sum(dim=0) for start in range(0, one.length, _ROWS)
        )
        return torch.stack(list(blocks)).sum(dim=0) / one.length

    def from_last(self) -> Tensor:
        """The attention of the last query of the only sequence, shape [M']."""
        (one,) = self.attended
        return one.of_rows(one.length - 1, one.length)[0]


class _Listening(TorchFunctionMode):
    """Keeps what every attention is called with; calls and results are as without it."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever torch returns
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func is _FUSED:
            self._heard.attended += _fused(*args, **given)
        elif func in _SOFTMAX and isinstance(result, Tensor) and result.ndim == 4:
            empty = result.new_zeros(0)
            self._heard.attended += [Attended(queries=empty, keys=empty, scale=1, weights=each) for each in result]
        return result


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> list[Attended]:
    """The arguments of torch's attention, one for each sequence; a causal one is only ever asked for its last row."""
    if query.ndim == 3:
        query, key = query.unsqueeze(0), key.unsqueeze(0)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    by = query.shape[-1] ** -0.5 if scale is None else scale
    masks = [None] * len(query) if attn_mask is None else attn_mask.expand(len(query), *attn_mask.shape[-3:])
    return [Attended(queries=q, keys=k, scale=by, mask=mask) for q, k, mask in zip(query, key, masks, strict=True)]


@contextmanager
def heard_attention(block: nn.Module, heard: Heard, *, in_replays: bool = False) -> Generator[None]:
    """Fill ``heard`` with what the attention of a block is called with, for the length of the ``with``.

    Args:
        block: attends.
        heard: is filled.
        in_replays: whether what is heard may come from a replay, where no other thing is noted of the block's module.
    """
    entered: list[_Listening] = []

    def enter(*_: object) -> None:
        entered.append(_Listening(heard))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    if in_replays:
        enter, leave = (collecting_in_replays(hook, heard.attended) for hook in (enter, leave))
    hooks = [
        block.register_forward_pre_hook(enter),
        block.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
