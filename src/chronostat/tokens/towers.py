"""What the structure of a vision tower says: whose attention is heard, and which of its tokens become which feature."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.models.anatomy import anatomy_of
from chronostat.models.locate import module_of

SORT_INTO_WINDOWS = "permute_input_for_window_attn"
"""The method of a tower that is told the order of its windows (Qwen2.5-VL and those made after it)."""

_BEFORE = ("class", "cls", "register")  # in the names of tokens that are learned and stand before the patches
_SIDES = ("spatial_merge_size", "merge_size")  # in a tower: the side of the squares in whose order its patches come


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the patches of one picture are among the M tokens that a block of the tower takes.

    Attributes:
        leading: tokens before them, the class token first.
        in_squares: the patches of one feature follow each other; else they lie row by row.
    """

    leading: int = 0
    in_squares: bool = False

    @classmethod
    def of(cls, tower: nn.Module) -> Self:
        """That of a tower."""
        told = any(hasattr(module, name) for module in tower.modules() for name in _SIDES)
        sized = "merge_sizes" in inspect.signature(tower.forward).parameters  # one for each picture (VideoLLaMA 3)
        return cls(
            leading=sum(token.numel() // token.shape[-1] for _, token in _learned_tokens(tower)),
            in_squares=told or sized,
        )

    def patches(self, seen: int, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Which tokens each feature is made of, shape [N, side * side]; None: of no squares of the same side.

        Args:
            seen: tokens that the block takes for the picture, M.
            grid: rows and columns of its features; one row where they are not known.
            device: of the result.
        """
        rows, columns = grid
        features = rows * columns
        side = isqrt((seen - self.leading) // features) if seen > self.leading else 0
        fits = side > 0 and side * side * features + self.leading == seen
        if not fits or (rows == 1 and side > 1 and not self.in_squares):
            return None
        places = torch.arange(self.leading, seen, device=device)
        if not self.in_squares:
            places = places.view(rows, side, columns, side).transpose(1, 2)
        return places.reshape(features, side * side)


def tower_of(model: PreTrainedModel) -> nn.Module | None:
    """The vision tower of a model; the first where it has several."""
    found = anatomy_of(model).vision
    return module_of(model, found[0])[0] if found else None


def heard_block(model: PreTrainedModel, tower: nn.Module) -> nn.Module | None:
    """The last block that features are made of and in which patches attend to the whole picture; None: there is none.

    Where a tower sorts its patches into windows, it has to say which blocks attend to all of them, and in which order
    they are.
    """
    blocks = _blocks(tower)
    if blocks is None:
        return None
    last = _feature_block(model.config, len(blocks))
    if not in_windows(tower):
        return blocks[last]
    whole = cast("Sequence[int]", getattr(tower, "fullatt_block_indexes", ()))
    index = max((index for index in whole if index <= last), default=None)
    return None if index is None or not hasattr(tower, SORT_INTO_WINDOWS) else blocks[index]


def in_windows(tower: nn.Module) -> bool:
    """Whether patches attend to those of their own window, in some blocks at least."""
    return hasattr(tower, "window_size") or hasattr(getattr(tower, "config", None), "window_size")


def objection_to(model: PreTrainedModel) -> str | None:
    """Why the attention of a model's tower does not say which image features count; None if it does."""
    tower, name = tower_of(model), type(model).__name__
    if tower is None or _blocks(tower) is None:
        return f"{name} has no vision tower with blocks that attend, so none says what counts"
    kind = type(tower).__name__
    if heard_block(model, tower) is None:
        return f"{kind} attends in windows and does not say which blocks attend to all and how it sorts its patches"
    own = [path for path, _ in _learned_tokens(tower) if "." not in path]
    if own:
        return f"{kind} adds {own[0]} itself, and does not say whether that comes before its patches or after them"
    mixing = [path for path in anatomy_of(model).projector if _attends(model, path)]
    if mixing:
        return f"{mixing[0]} of {name} attends, so that a feature is made of more than a square of patches"
    attention = getattr(getattr(tower, "config", None), "_attn_implementation", "sdpa")
    if attention not in {"sdpa", "eager"}:
        return f"{kind} attends by {attention!r}, where it is not seen; load it with attn_implementation='sdpa'"
    return None


def _blocks(tower: nn.Module) -> nn.ModuleList | None:
    """The longest list in a tower of modules that attend, by the names of their parts."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    attending = [each for each in lists if any("att" in name for name, _ in each.named_modules())]
    return max(attending, key=len, default=None)


def _feature_block(config: Any, count: int) -> int:  # noqa: ANN401 - any model's configuration
    """The last block whose output is projected, of ``count``.

    ``vision_feature_layer``, or a list of several, counts hidden states: of those the k-th is what block k - 1 gives.
    """
    named = getattr(config, "vision_feature_layers", None) or getattr(config, "vision_feature_layer", None)
    layers = cast("Sequence[object]", named if isinstance(named, list | tuple) else [named])
    blocks = [layer % count if layer < 0 else layer - 1 for layer in layers if isinstance(layer, int)]
    return max(0, *blocks) if blocks else count - 1


def _learned_tokens(tower: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tokens of a tower that are of no patch, by path."""
    for path, parameter in tower.named_parameters():
        name = path.rpartition(".")[2]
        if any(word in name for word in _BEFORE) and "position" not in name and name not in {"weight", "bias"}:
            yield path, parameter


def _attends(model: PreTrainedModel, path: str) -> bool:
    module, method = module_of(model, path)
    return method is None and any("att" in name for name, _ in module.named_modules())
