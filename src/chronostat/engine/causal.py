"""Capturing a prefill on the causal way that it takes when it is not captured."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

_SDPA = "sdpa"


@contextmanager
def causal_masks_left_out() -> Generator[None]:
    """Where a mask would only say "causal", SDPA is told so instead, as in an eager call.

    transformers 5.17 takes a stream that is captured for tracing, and then writes every mask out, which shuts SDPA's
    causal flash kernel out: slower, and rounded otherwise. Its registry of mask functions is where one can say so.
    """
    registry = ALL_MASK_ATTENTION_FUNCTIONS
    own = dict(registry._local_mapping)  # pyright: ignore[reportPrivateUsage] - an entry here hides one of all models
    registry[_SDPA] = _leaving_out(registry[_SDPA])
    try:
        yield
    finally:
        del registry[_SDPA]
        registry.update(own)


def _leaving_out(original: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    def mask(*args: Any, **given: Any) -> Tensor | None:  # noqa: ANN401 - the library's arguments
        return None if not args and _only_causal(given) else original(*args, **given)

    return mask


def _only_causal(given: dict[str, Any]) -> bool:
    """The library's own conditions: all tokens so far are in this forward, none is masked, and no pattern was added."""
    offset = given.get("q_offset")
    return (
        given.get("allow_is_causal_skip", False) is True
        and given.get("attention_mask") is None
        and given.get("local_size") is None
        and isinstance(offset, int)
        and offset == 0
        and given.get("q_length") == given.get("kv_length")
    )
