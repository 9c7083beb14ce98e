"""``attention``: the image tokens that the vision tower itself attends to."""

import functools
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.errors import KnobError
from chronostat.measure.hooks import restorer
from chronostat.tokens.listening import Heard, heard_attention
from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, Selection, highest
from chronostat.tokens.towers import SORT_INTO_WINDOWS, Layout, heard_block, objection_to, tower_of


class Attention(Method):
    """The tokens that get the most attention in the tower's last block that features are made of.

    From the class token, where the tower has one (Zhang et al. 2024, FasterVLM, arXiv:2412.01818); else the mean over
    all patches, as Yang et al. 2024 do (VisionZip, arXiv:2412.04467), without their merging of the other tokens. The
    mean over heads of the softmax of queries and keys, which are read from the tower's own fast attention. In towers
    with windows the last block that attends to the whole picture is read.
    """

    name = "attention"

    def __init__(self, model: PreTrainedModel, text_ids: Tensor) -> None:
        super().__init__(model, text_ids)
        self._heard = Heard()
        self._layout = Layout()
        self._sorted: Tensor | None = None  # where the tower has windows: which square stands where, [all squares]

    @classmethod
    def objection(cls, model: PreTrainedModel) -> str | None:
        """A tower without blocks that attend, or one of which it is not known which patches become which feature."""
        return objection_to(model)

    @contextmanager
    def encoding(self) -> Generator[None]:
        """Listen to one block of the tower."""
        tower = tower_of(self._model)
        block = None if tower is None else heard_block(self._model, tower)
        assert tower is not None
        assert block is not None, "objection() has been asked"
        self._layout = Layout.of(tower)
        in_windows = hasattr(tower, SORT_INTO_WINDOWS)  # whose order no replay would tell
        with self._told_windows(tower), heard_attention(block, self._heard, in_replays=not in_windows):
            yield
        self._heard.require(block)

    @contextmanager
    def _told_windows(self, tower: nn.Module) -> Generator[None]:
        """Note the order of the windows when the tower is told it."""
        original = getattr(tower, SORT_INTO_WINDOWS, None)
        if original is None:
            yield
            return

        @functools.wraps(original)
        def noted(hidden: Tensor, window_index: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self._sorted = window_index
            return original(hidden, window_index, *args, **kwargs)

        with ExitStack() as undo:
            undo.callback(restorer(tower, SORT_INTO_WINDOWS))
            setattr(tower, SORT_INTO_WINDOWS, noted)
            yield

    def choose(self, picture: Picture, count: int) -> Selection:
        """By the attention of the class token, or by the mean over all; the sum over the patches of each feature."""
        patches = self._patches(picture)  # [N, patches of a feature]
        received = self._heard.received(picture.index, from_first=self._layout.leading > 0)  # [M]
        return highest(received[patches].sum(dim=-1), count)

    def _patches(self, picture: Picture) -> Tensor:
        """Which tokens of the block each feature is made of."""
        heard = self._heard.attended
        if len(heard) != picture.together:
            raise self._unlike(f"attends over {len(heard)} pictures, and the features are of {picture.together}")
        patches = self._layout.patches(heard[picture.index].length, picture.grid, picture.features.device)
        if patches is None:
            tokens = f"{heard[picture.index].length} tokens for {len(picture.features)} features"
            raise self._unlike(f"has {tokens} (picture {picture.index}), which are no squares of them")
        if self._sorted is None:
            return patches
        # windows are sorted within a picture
        before = sum(each.length for each in heard[: picture.index]) // patches.shape[1]
        places = self._sorted.to(patches.device).argsort()[before : before + len(patches)] - before
        return patches[places]

    def _unlike(self, what: str) -> KnobError:
        return KnobError(
            f"image_keep = attention: the block of the vision tower of {type(self._model).__name__} whose attention is "
            f"read {what}; use another method"
        )
