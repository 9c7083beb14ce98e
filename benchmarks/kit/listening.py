"""Sees the same moments as the stage recorder, on its own: what the recorder says can be held against it."""

import functools
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, cast

from torch import Tensor, nn
from transformers import PreTrainedModel, StoppingCriteriaList

from chronostat.measure.clock import Clock, Mark
from chronostat.models.anatomy import anatomy_of
from chronostat.models.blocks import running_blocks


class Listener(Protocol):
    """Is told when a stage begins and ends, and of each token."""

    def enter(self, stage: str) -> None:
        """A call of the stage begins."""
        ...

    def leave(self, stage: str) -> None:
        """It ends."""
        ...

    def token(self) -> None:
        """``generate()`` asks whether to stop, once per token."""
        ...


class Edges:
    """Takes marks of a clock: entry and exit of what is prefill, and the tokens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.calls: list[tuple[Mark, Mark]] = []
        self.tokens: list[Mark] = []
        self._open: list[Mark] = []

    def enter(self, stage: str) -> None:
        """Mark the outermost entry."""
        if stage in {"forward", "encode"}:
            self._open.append(self._clock.mark())

    def leave(self, stage: str) -> None:
        """Mark the outermost exit."""
        if stage in {"forward", "encode"}:
            start = self._open.pop()
            if not self._open:
                self.calls.append((start, self._clock.mark()))

    def token(self) -> None:
        """Mark a token."""
        self.tokens.append(self._clock.mark())


@contextmanager
def listening(model: PreTrainedModel, listener: Listener) -> Generator[None]:
    """Tell ``listener`` of the stages before the first token, and of all tokens, for the length of the ``with``."""
    anatomy = anatomy_of(model)
    blocks = running_blocks(model, anatomy.blocks)
    state = {"tokens": 0}

    def enter(stage: str, *_: object) -> None:
        if not state["tokens"]:
            listener.enter(stage)

    def leave(stage: str, *_: object) -> None:
        if not state["tokens"]:
            listener.leave(stage)

    def token() -> None:
        listener.token()
        state["tokens"] += 1

    with ExitStack() as stack:
        stack.enter_context(_hooked(model, model, "forward", enter, leave))
        for stage, paths in (("vision", anatomy.vision), ("projector", anatomy.projector)):
            for path in paths:
                module = model.get_submodule(path)
                stack.enter_context(_hooked(module, module, stage, enter, leave))
        stack.enter_context(_hooked(blocks[0], blocks[-1], "blocks", enter, leave))
        stack.enter_context(_encoding(model, enter, leave))
        stack.enter_context(_tokens(token))
        yield


@contextmanager
def _hooked(
    first: nn.Module, last: nn.Module, stage: str, enter: Callable[..., None], leave: Callable[..., None]
) -> Generator[None]:
    before = first.register_forward_pre_hook(functools.partial(enter, stage))
    after = last.register_forward_hook(functools.partial(leave, stage))
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def _encoding(model: PreTrainedModel, enter: Callable[..., None], leave: Callable[..., None]) -> Generator[None]:
    """The method that ``generate()`` calls for images before the first forward, where it does."""
    base: Any = model.base_model
    original = getattr(base, "get_image_features", None)
    if original is None:
        yield
        return

    @functools.wraps(original)  # generate() reads the signature
    def told(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever the method takes
        enter("encode")
        try:
            return original(*args, **kwargs)
        finally:
            leave("encode")

    base.get_image_features = told
    try:
        yield
    finally:
        del base.get_image_features


@contextmanager
def _tokens(token: Callable[[], None]) -> Generator[None]:
    """Through the list that ``generate()`` asks, whatever criteria are in it."""
    original = StoppingCriteriaList.__call__

    def told(self: StoppingCriteriaList, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        token()
        return cast("Tensor", original(self, *args, **kwargs))

    StoppingCriteriaList.__call__ = told  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        StoppingCriteriaList.__call__ = original  # pyright: ignore[reportAttributeAccessIssue]
