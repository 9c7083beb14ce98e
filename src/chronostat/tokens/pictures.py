"""What a model hands over after its projector, read as pictures of tokens, and the same with fewer of them."""

import copy
from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

Kept = Callable[[Sequence[Tensor]], list[Tensor]]
"""From the features of each picture, shape [n, d], to those that are kept."""

_FIELDS = ("pooler_output", "deepstack_features")  # what is merged into the embeddings, in the library's outputs
_BARE = ("last_hidden_state",)  # of models that project it afterwards, or have no tower
_MOST_LEADING = 16  # class token and registers before the patches


def output_pictures(output: Any, tokens: int) -> list[Tensor] | None:  # noqa: ANN401 - a model's output
    """The features of each picture in an output; or in a bare value, as of ``pictures_of``.

    Where the tower read tiles of which all have equally many of the features, each tile is a picture.
    """
    values = [getattr(output, name) for name in _fields(output)] or [output]
    pictures = next((found for value in values if (found := pictures_of(value, tokens)) is not None), None)
    hidden = getattr(output, "last_hidden_state", None)
    if pictures is None or not isinstance(hidden, Tensor) or hidden.ndim != 3:
        return pictures
    each, rest = divmod(tokens, len(hidden))
    fits = not rest and each and not any(len(picture) % each for picture in pictures)
    if not fits or not _of_squares(hidden.shape[1], each):
        return pictures
    return [tile for picture in pictures for tile in picture.split(each)]


def _of_squares(seen: int, tokens: int) -> bool:
    """Whether features may be of one square of patches each: ``tokens`` of them, of the ``seen`` tokens of a tower."""
    side = isqrt(seen // tokens)
    return side > 0 and seen - side * side * tokens <= _MOST_LEADING


def pictures_of(value: object, tokens: int) -> list[Tensor] | None:
    """The features of each picture, shape [n, d] each, which are ``tokens`` together; None: they are not.

    Args:
        value: a tensor of shape [tokens, d] or [pictures, n, d], or a list of such tensors; or lists and pairs of
            these, of which the first is read (features for several blocks).
        tokens: placeholders of the request.
    """
    if isinstance(value, Tensor):
        parts = list(value) if value.ndim == 3 and value.shape[1] > 1 else [_rows(value)]
        return parts if sum(map(len, parts)) == tokens else None
    if _are_tensors(value) and sum(len(_rows(part)) for part in value) == tokens:
        return [_rows(part) for part in value]
    if isinstance(value, list | tuple):
        found = (pictures_of(part, tokens) for part in cast("Sequence[object]", value))
        return next((pictures for pictures in found if pictures is not None), None)
    return None


def output_with_fewer(output: Any, sizes: Sequence[int], kept: Kept) -> Any:  # noqa: ANN401
    """An output, or a bare value, in which every field of image features has fewer tokens.

    Args:
        output: as of ``output_pictures``.
        sizes: tokens of each picture.
        kept: what is left of them.
    """
    fields = _fields(output)
    if not fields:
        return _with_fewer(output, sizes, kept)
    fewer = copy.copy(output)
    for name in fields:
        fewer[name] = _with_fewer(getattr(output, name), sizes, kept)
    return fewer


def _with_fewer(value: Any, sizes: Sequence[int], kept: Kept) -> Any:  # noqa: ANN401
    """The value in its own form; what does not hold as many tokens is left as it is."""
    if isinstance(value, Tensor):
        rows = _rows(value)
        return value if len(rows) != sum(sizes) else _in_form(value, kept(rows.split(list(sizes))))
    if _are_tensors(value) and [len(_rows(part)) for part in value] == list(sizes):
        chosen = kept([_rows(part) for part in value])
        return type(value)(_in_form(part, [rows]) for part, rows in zip(value, chosen, strict=True))
    if isinstance(value, list | tuple):
        return type(value)(_with_fewer(part, sizes, kept) for part in cast("Sequence[object]", value))
    return value


def _in_form(like: Tensor, pictures: Sequence[Tensor]) -> Tensor:
    """Shape [tokens, d] where it was so, [tokens, 1, d], or [pictures, n, d] with one picture where they differ."""
    if like.ndim == 2:
        return torch.cat(list(pictures))
    if like.shape[1] == 1:
        return torch.cat(list(pictures)).unsqueeze(1)
    equal = len({len(picture) for picture in pictures}) == 1
    return torch.stack(list(pictures)) if equal else torch.cat(list(pictures)).unsqueeze(0)


def _fields(output: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The fields of an output that hold image features."""
    held = tuple(name for name in _FIELDS if getattr(output, name, None) is not None)
    return held or tuple(name for name in _BARE if getattr(output, name, None) is not None)


def _rows(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _are_tensors(value: object) -> TypeGuard[list[Tensor] | tuple[Tensor, ...]]:
    parts = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
    return bool(parts) and all(isinstance(part, Tensor) for part in parts)
