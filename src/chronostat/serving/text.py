"""The answer as it comes: a stopping criterion that reads each token, hands text on, and ends what nobody waits for.

A criterion and no streamer: ``generate()`` asks its criteria before it tells a streamer of the same token, so that a
stop text found by a streamer would cost one more token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin, StoppingCriteria

from chronostat.wire.asks import Piece

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for the beginning of a character


class AnswerText(StoppingCriteria):
    """The text of one answer.

    Args:
        processor: decodes tokens.
        stop: texts that end the answer and are no part of it.
        told: called with each new piece of text; what may become a stop text is held back.
        gone: whether nobody waits any more; asked at every token.

    Attributes:
        text: all that was told.
        stopped: a stop text ended the answer.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        stop: Sequence[str],
        told: Callable[[Piece], None],
        gone: Callable[[], bool],
    ) -> None:
        self._decode = _decoder(processor)
        self._stop, self._told, self._gone = tuple(stop), told, gone
        self._held_back = max(map(len, stop), default=1) - 1
        self._ids: list[int] = []
        self._begin = self._read = 0  # tokens before which the text is settled: decoding looks back one piece
        self._prompt_tokens = 0
        self._pending = ""
        self.text = ""
        self.stopped = False

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - Tensor where the base says BoolTensor
        self,
        input_ids: Tensor,
        scores: tuple[Tensor] | None,
        **kwargs: Any,  # noqa: ANN401 - as the base
    ) -> Tensor:
        """Shape [1]: whether the answer ends with this token."""
        if not self._ids:
            self._prompt_tokens = input_ids.shape[1] - 1
        self.add(int(input_ids[0, -1]))
        ends = self.stopped or self._gone()
        return torch.full((1,), ends, dtype=torch.bool, device=input_ids.device)

    def add(self, token: int) -> None:
        """Take the next token."""
        self._ids.append(token)
        before = self._decode(self._ids[self._begin : self._read])
        now = self._decode(self._ids[self._begin :])
        if now.endswith(_UNFINISHED) or self.stopped:
            return
        self._begin, self._read = self._read, len(self._ids)
        self._take(now[len(before) :])

    def end(self) -> None:
        """Hand on what was held back; the answer is complete."""
        if not self.stopped:
            self._take(self._decode(self._ids[self._begin :])[len(self._decode(self._ids[self._begin : self._read])) :])
            self._tell(self._pending)

    def _take(self, piece: str) -> None:
        self._pending += piece
        found = [at for each in self._stop if (at := self._pending.find(each)) >= 0]
        if found:
            self.stopped = True
            piece, self._pending = self._pending[: min(found)], ""
            self._tell(piece)
            return
        settled = len(self._pending) - self._held_back
        if settled > 0:
            piece, self._pending = self._pending[:settled], self._pending[settled:]
            self._tell(piece)

    def _tell(self, piece: str) -> None:
        if piece:
            self.text += piece
            self._told(Piece(piece, self._prompt_tokens, len(self._ids)))


def _decoder(processor: ProcessorMixin) -> Callable[[list[int]], str]:
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
