"""Vision towers and projectors, replayed inside a ``generate()`` and in what a knob does for it before."""

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import RLock, local
from typing import Any

import torch
from torch import nn

from chronostat.engine.parts import Given, Part, PartProgram, captured_part, given, parts_of
from chronostat.engine.pool import Pool, why_slower
from chronostat.engine.replaying import CannotCapture, Capturing
from chronostat.engine.state import State, States, skipped_hooks, switches
from chronostat.measure.arguments import IMAGE_KEYS, VIDEO_KEYS
from chronostat.measure.hooks import restorer
from chronostat.measure.replays import Replayed, collected_by, seen_in_replays, tell
from chronostat.models.calls import watching_calls


@dataclass(kw_only=True)
class Encoded:
    """How the towers and projectors of one ``generate()`` ran.

    Attributes:
        eager: by path why each one ran eagerly; None: it was replayed.
        captured: graphs of them captured during this call.
        evicted: graphs that left the pool for them.
    """

    eager: dict[str, str | None] = field(default_factory=dict[str, str | None])
    captured: int = 0
    evicted: int = 0

    @property
    def reasons(self) -> dict[str, str]:
        """Why those that ran eagerly did."""
        return {path: why for path, why in self.eager.items() if why is not None}


@dataclass(kw_only=True)
class _Call:
    """One ``generate()``, and what a knob does for it before.

    Attributes:
        states: of each part when it began.
        modules: of each part by path: what of a replay can be known before is not looked up while the device waits.
        generates: whether ``generate()`` itself has begun.
    """

    states: Mapping[str, State]
    modules: Mapping[str, Sequence[tuple[str, nn.Module]]]
    encoded: Encoded
    generates: bool


class _Now(local):
    """The call that a thread is in."""

    call: _Call | None = None


class Towers:
    """The parts beside the decoder of one model.

    One thread has them at a time: graphs read from places that they share.

    Args:
        model: whose ``generate()`` is called.
        decoder: the module that is replayed by itself.
        capturing: how forwards are captured.
        pool: of all graphs of the model.
        states: that were seen.
        is_paused: whether calls that begin now run eagerly.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: nn.Module,
        capturing: Capturing,
        *,
        pool: Pool,
        states: States,
        is_paused: Callable[[], bool],
    ) -> None:
        self._model = model
        self._capturing = capturing
        self._pool = pool
        self._states = states
        self._device = next(model.parameters()).device
        self.parts, self._others = parts_of(model, decoder)
        self._now = _Now()
        self._one = RLock()
        self._is_paused = is_paused

    @property
    def encoded(self) -> Encoded:
        """How the parts run in the call of this thread; nothing of them where it has no image."""
        call = self._now.call
        return Encoded() if call is None else call.encoded

    @property
    def are_busy(self) -> bool:
        """Whether another thread is in a call."""
        alone = self._one.acquire(blocking=False)
        if alone:
            self._one.release()
        return not alone

    @contextmanager
    def installed(self) -> Generator[None]:
        """The parts are replayed meanwhile."""
        with ExitStack() as undo:
            model: Any = self._model
            undo.enter_context(watching_calls(self._model, lambda arguments: self._calling(arguments, before=True)))
            self._replace(undo, self._model, "generate", self._generate(model.generate))
            for part in self.parts:
                self._replace(undo, part.module, "forward", self._forward(part))
            yield

    def _replace(self, undo: ExitStack, owner: nn.Module, name: str, new: Callable[..., Any]) -> None:
        undo.callback(restorer(owner, name))
        setattr(owner, name, new)

    def _generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever generate takes
            with self._calling(kwargs, before=False):
                return original(*args, **kwargs)

        return generate

    @contextmanager
    def _calling(self, arguments: Mapping[str, Any], *, before: bool) -> Generator[None]:
        """Around a ``generate()``, or around what comes ``before`` it and itself; a call inside one is another call."""
        now = self._now.call
        if now is not None and not now.generates:
            now.generates = not before
            yield
            return
        alone = self._one.acquire(blocking=False)
        try:
            self._now.call = self._begun(arguments, before=before) if alone else None
            yield
        finally:
            self._now.call = now
            if alone:
                self._one.release()

    def _begun(self, arguments: Mapping[str, Any], *, before: bool) -> _Call | None:
        if self._is_paused() or not any(arguments.get(key) is not None for key in (*IMAGE_KEYS, *VIDEO_KEYS)):
            return None
        modules = {part.path: tuple(part.module.named_modules()) for part in self.parts}
        return _Call(
            states={path: self._states.now(module for _, module in inside) for path, inside in modules.items()},
            modules=modules,
            encoded=Encoded(eager=dict(self._others)),
            generates=not before,
        )

    def _forward(self, part: Part) -> Callable[..., Any]:
        @functools.wraps(part.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever the part takes
            call = self._now.call
            if call is None:
                return part.forward(*args, **kwargs)
            encoded, made = call.encoded, call.encoded.captured
            try:
                arguments = given(args, kwargs, self._device)
                collected = _collected(call.modules[part.path])
                output = self._program(call, part, arguments, collected).run(arguments, tuple(collected.values()))
            except CannotCapture as cannot:
                encoded.eager[part.path] = str(cannot)
                return part.forward(*args, **kwargs)
            encoded.eager.setdefault(part.path, None)
            tell(self._model, Replayed(part=part.module, captured=why_slower(encoded.captured - made)))
            return output

        return seen_in_replays(forward)

    def _program(self, call: _Call, part: Part, arguments: Given, collected: Mapping[str, list[Any]]) -> PartProgram:
        key = (part.path, call.states[part.path], switches(), arguments.signature(), *collected)
        program = self._pool.find(key)
        if program is None:
            try:
                lists = tuple(collected.values())
                program = captured_part(part, arguments, lists, self._capturing, self._pool.replays)
            except CannotCapture as cannot:
                self._pool.refuse(key, str(cannot))
                raise
            call.encoded.captured += 1
            call.encoded.evicted += self._pool.keep(key, program)
        assert isinstance(program, PartProgram), "its key begins with a path"
        return program


def _collected(modules: Sequence[tuple[str, nn.Module]]) -> dict[str, list[Any]]:
    """What hooks inside a part collect, by the paths of their modules.

    Raises:
        CannotCapture: something else would not happen in a replay.
    """
    if torch.is_grad_enabled() or modules[0][1].training:
        raise CannotCapture("is being trained")
    found: dict[str, list[Any]] = {}
    for path, hook in skipped_hooks(modules):
        into = collected_by(hook)
        if into is None or found.setdefault(path, into) is not into:
            raise CannotCapture(f"has a forward hook on {path}, which would not run")
    return found
