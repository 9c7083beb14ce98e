"""What a model hands over after its projector, read as pictures of tokens, and the same with fewer of them."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

_FIELDS = ("pooler_output", "deepstack_features")  # what is merged into the embeddings, in the library's outputs
_BARE = ("last_hidden_state",)  # of models that project it afterwards, or have no tower


def _fields(output: Any) -> tuple[str, ...]:  # noqa: ANN401 - a model's output
    """The fields of an output that hold image features."""
    held = tuple(name for name in _FIELDS if getattr(output, name, None) is not None)
    return held or tuple(name for name in _BARE if getattr(output, name, None) is not None)


def pictures_of(value: object, tokens: int) -> list[Tensor] | None:
    """The features of each picture, shape [n, d] each, which are ``tokens`` together; None: they are not.

    Args:
        value: a tensor of shape [tokens, d] or [pictures, n, d], or a list of such tensors; or lists and pairs of
            these, of which the first is read (features for several blocks).
        tokens: placeholders of the request.
    """
    if isinstance(value, Tensor):
        parts = _split(value)
    elif isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        parts = [part.reshape(-1, part.shape[-1]) for part in cast("Sequence[Tensor]", value)]
    elif isinstance(value, list | tuple):
        found = (pictures_of(part, tokens) for part in cast("Sequence[object]", value))
        return next((pictures for pictures in found if pictures is not None), None)
    else:
        return None
    return parts if sum(map(len, parts)) == tokens else None


def _split(value: Tensor) -> list[Tensor]:
    if value.ndim == 3 and value.shape[1] > 1:
        return list(value)
    return [value.reshape(-1, value.shape[-1])]


def with_fewer(value: Any, tokens: int, kept: Callable[[list[Tensor]], list[Tensor]]) -> Any:  # noqa: ANN401
    """The same value with fewer tokens in every part that ``pictures_of`` reads.

    Args:
        value: as of ``pictures_of``.
        tokens: likewise.
        kept: from the features of each picture to those that are kept.
    """
    is_list = isinstance(value, list | tuple)
    if is_list and not (value and all(isinstance(part, Tensor) for part in value)):
        return type(value)(with_fewer(part, tokens, kept) for part in value)
    pictures = pictures_of(value, tokens)
    if pictures is None:
        return value
    fewer = kept(pictures)
    if is_list:
        return type(value)(part.unsqueeze(0) if one.ndim == 3 else part for one, part in zip(value, fewer, strict=True))
    if value.ndim == 2:
        return fewer[0]
    return _stacked(fewer) if value.shape[1] > 1 else fewer[0].unsqueeze(1)


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Shape [pictures, n, d] where they have equally many tokens, else [1, all, d]."""
    equal = len({len(picture) for picture in pictures}) == 1
    return torch.stack(list(pictures)) if equal else torch.cat(list(pictures)).unsqueeze(0)


def output_pictures(output: Any, tokens: int) -> list[Tensor] | None:  # noqa: ANN401 - a model's output
    """The features of each picture in an output; or in a bare value, as of ``pictures_of``."""
    values = [getattr(output, name) for name in _fields(output)] or [output]
    return next((found for value in values if (found := pictures_of(value, tokens)) is not None), None)


def output_with_fewer(output: Any, tokens: int, kept: Callable[[list[Tensor]], list[Tensor]]) -> Any:  # noqa: ANN401
    """An output whose image features have fewer tokens; a bare value likewise."""
    fields = _fields(output)
    if not fields:
        return with_fewer(output, tokens, kept)
    fewer = copy.copy(output)
    for name in fields:
        fewer[name] = with_fewer(getattr(output, name), tokens, kept)
    return fewer
