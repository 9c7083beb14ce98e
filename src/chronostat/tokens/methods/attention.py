"""``attention``: the image tokens that the vision tower itself attends to."""

from collections.abc import Generator
from contextlib import contextmanager
from math import isqrt
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.errors import KnobError
from chronostat.models.anatomy import anatomy_of
from chronostat.models.locate import module_of
from chronostat.tokens.listening import Heard, heard_attention
from chronostat.tokens.methods.method import Method
from chronostat.tokens.pictures import leading_of
from chronostat.tokens.selection import Picture, Selection, highest


class Attention(Method):
    """The tokens that get the most attention in the tower's block whose output the features are made of.

    From the class token, where the tower has one (Zhang et al. 2024, FasterVLM, arXiv:2412.01818); else the mean over
    all patches, as Yang et al. 2024 do (VisionZip, arXiv:2412.04467), without their merging of the other tokens. The
    mean over heads of the softmax of queries and keys, which are read from the tower's own fast attention.
    """

    name = "attention"

    def __init__(self, model: PreTrainedModel, text_ids: Tensor) -> None:
        super().__init__(model, text_ids)
        self._heard = Heard()

    @classmethod
    def objection(cls, model: PreTrainedModel) -> str | None:
        """A tower without blocks that attend, or one that keeps its patches in another order."""
        tower, name = _tower(model), type(model).__name__
        if tower is None or _blocks(tower) is None:
            return f"{name} has no vision tower with blocks that attend, so none says what counts"
        kind, config = type(tower).__name__, getattr(tower, "config", None)
        if hasattr(tower, "window_size") or hasattr(config, "window_size"):
            return f"{kind} attends in windows and keeps its patches in their order, not in that of the features"
        attention = getattr(config, "_attn_implementation", "sdpa")
        if attention not in {"sdpa", "eager"}:
            return f"{kind} attends by {attention!r}, where it is not seen; load it with attn_implementation='sdpa'"
        return None

    @contextmanager
    def encoding(self) -> Generator[None]:
        """Listen to one block of the tower."""
        tower = _tower(self._model)
        blocks = None if tower is None else _blocks(tower)
        assert blocks is not None, "objection() has been asked"
        with heard_attention(blocks[_feature_block(self._model, len(blocks))], self._heard):
            yield

    def choose(self, picture: Picture, count: int) -> Selection:
        """By the attention of the class token, or by the mean over all."""
        queries = self._heard.pictures
        if picture.index >= len(queries):
            raise self._unlike(picture, "saw fewer images than features came of")
        weights = self._heard.received(picture.index, from_first=self._leading(picture) > 0)  # [M]
        return highest(self._per_token(weights[self._leading(picture) :], picture), count)

    def _leading(self, picture: Picture) -> int:
        """Tokens before the patches."""
        seen, tokens = self._heard.pictures[picture.index], len(picture.features)
        leading = leading_of(seen, tokens)
        if leading is None:
            raise self._unlike(picture, f"has {seen} tokens for {tokens} features, which are no squares of them")
        return leading

    def _per_token(self, weights: Tensor, picture: Picture) -> Tensor:
        """The sum over the patches that each feature is made of, shape [N]."""
        tokens = len(picture.features)
        side = isqrt(len(weights) // tokens)
        if side == 1:
            return weights
        if self._heard.packed:  # patches of one feature lie side by side
            return weights.view(tokens, side * side).sum(dim=1)
        rows, columns = picture.grid
        if rows == 1:
            raise self._unlike(picture, "merges patches into features that lie in no grid")
        return weights.view(rows, side, columns, side).sum(dim=(1, 3)).flatten()

    def _unlike(self, picture: Picture, what: str) -> KnobError:
        return KnobError(
            f"image_keep = attention: the block of the vision tower of {type(self._model).__name__} whose attention is "
            f"read {what} (picture {picture.index}); use another method"
        )


def _tower(model: PreTrainedModel) -> nn.Module | None:
    found = anatomy_of(model).vision
    return module_of(model, found[0])[0] if found else None


def _blocks(tower: nn.Module) -> nn.ModuleList | None:
    """The longest list in a tower of modules that attend, by the names of their parts."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    attending = [each for each in lists if any("att" in name for name, _ in each.named_modules())]
    return max(attending, key=len, default=None)


def _feature_block(model: PreTrainedModel, count: int) -> int:
    """The block whose output is projected: a negative one as in ``vision_feature_layer``, or the last."""
    config: Any = model.config
    layer = getattr(config, "vision_feature_layer", None)
    if not isinstance(layer, int):
        return count - 1
    return layer % count if layer < 0 else max(0, layer - 1)  # hidden_states[k] is what block k - 1 gives
