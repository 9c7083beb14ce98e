"""One captured forward of a decoder, and the bounded pool of them."""

from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chronostat.engine.cache import Room, RoomCache, Written
from chronostat.engine.causal import causal_masks_left_out
from chronostat.engine.inputs import Inputs, Places
from chronostat.engine.replaying import CannotCapture, Capturing, Replay, Work
from chronostat.errors import ChronostatError
from chronostat.measure.clock import Mark
from chronostat.measure.replays import is_seen_in_replays

Step = Literal["prefill", "decode"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_MOST_DIFFERENCE = 0.05  # of norms: rounding and a flipped route stay far below, a wrong mask or position does not


@dataclass(frozen=True, kw_only=True)
class Program:
    """A forward of q tokens that was captured: the prefill of a length, or any decode step.

    Attributes:
        step: "prefill" or "decode".
        length: tokens of the forward, padding among them.
        room: whose keys and values it writes and reads.
        places: what it reads its arguments from.
        replay: does the work.
        kind: of the decoder's output.
    """

    step: Step
    length: int
    room: Room
    places: Places
    replay: Replay
    kind: Callable[..., Any]

    def run(self, inputs: Inputs, cache: RoomCache) -> Any:  # noqa: ANN401 - the library's output objects
        """What the decoder would return; its hidden states lie where the next run writes."""
        self.places.fill(inputs)
        if cache.written.tokens:
            self.room.position.fill_(cache.written.tokens)
        self.replay.run()
        return self.kind(last_hidden_state=self.replay.output[:, : inputs.tokens], past_key_values=cache)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What is captured.

    Attributes:
        forward: the module's own.
        blocks: gives the first and the last block that runs now.
    """

    module: nn.Module
    forward: Callable[..., Any]
    blocks: Callable[[], tuple[nn.Module, nn.Module]]


def captured(
    decoder: Decoder,
    arguments: Mapping[str, Any],
    inputs: Inputs,
    length: int,
    capturing: Capturing,
    beside: Sequence[Replay],
) -> Program:
    """Run a forward as it is, capture it, and see that both give the same.

    Args:
        decoder: the module, and where its blocks are.
        arguments: of the call, its cache among them; its room is written as by the call itself.
        inputs: the same, sorted.
        length: tokens that the graph is for, at least those of the call; others are padding, on the right.
        capturing: how.
        beside: what was captured before and is kept.

    Raises:
        CannotCapture: says why.
    """
    cache: RoomCache = arguments["past_key_values"]
    decodes = bool(cache.written.tokens)
    with lifted(decoder.module):
        expected = decoder.forward(**arguments)
    _require_plain(expected)
    if decodes:
        cache.room.position.fill_(cache.written.tokens)
    places = Places(inputs, length)
    marks: list[Mark] = []

    def work() -> Tensor:
        given: dict[str, Any] = {**inputs_plain, **places.tensors}
        if decodes:
            given["attention_mask"] = room.decode_mask()
        written = Written(room.position if decodes else 0)
        return forward(**given, past_key_values=RoomCache(room, written)).last_hidden_state

    room, inputs_plain, forward = cache.room, dict(inputs.plain), decoder.forward
    try:
        with lifted(decoder.module), torch.no_grad():
            replay = _capture(decoder, capturing, work, beside, marks)
            program = Program(
                step="decode" if decodes else "prefill",
                length=length,
                room=room,
                places=places,
                replay=replay,
                kind=type(expected),
            )
            replayed = program.run(inputs, cache).last_hidden_state
    except ChronostatError:
        raise
    except Exception as error:  # what a decoder raises on the mask of a captured step is not known
        raise CannotCapture(f"captured, its decoder raises {type(error).__name__}: {error}") from error
    _require_same(replayed, expected.last_hidden_state)
    return program


def _capture(decoder: Decoder, capturing: Capturing, work: Work, beside: Sequence[Replay], marks: list[Mark]) -> Replay:
    if capturing.fires_hooks:
        return capturing.capture(work, beside, marks)
    with _marked(decoder.blocks(), capturing, marks), causal_masks_left_out():
        return capturing.capture(work, beside, marks)


@contextmanager
def lifted(module: nn.Module) -> Generator[None]:
    """Hooks that are told of replays do not fire meanwhile: a call that captures runs its forward several times."""
    lifted = [
        (part, name, hooks)
        for part in module.modules()
        for name in _HOOKS
        if (hooks := vars(part)[name]) and any(map(is_seen_in_replays, hooks.values()))
    ]
    try:
        for part, name, hooks in lifted:
            kept = OrderedDict((key, hook) for key, hook in hooks.items() if not is_seen_in_replays(hook))
            setattr(part, name, kept)
        yield
    finally:
        for part, name, hooks in lifted:
            setattr(part, name, hooks)


@contextmanager
def _marked(blocks: tuple[nn.Module, nn.Module], capturing: Capturing, marks: list[Mark]) -> Generator[None]:
    """Marks at the entry of the first block and the exit of the last one."""

    def take(*_: object) -> None:
        mark = capturing.mark()
        if mark is not None:
            marks.append(mark)

    first, last = blocks
    handles = (first.register_forward_pre_hook(take, prepend=True), last.register_forward_hook(take))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_plain(output: Any) -> None:  # noqa: ANN401 - whatever a decoder returns
    if not hasattr(output, "last_hidden_state") or not hasattr(output, "items"):
        raise CannotCapture(f"its decoder returns a {type(output).__name__}")
    more = [name for name, value in output.items() if value is not None]
    more = [name for name in more if name not in ("last_hidden_state", "past_key_values")]
    if more:
        raise CannotCapture(f"its decoder returns {', '.join(more)} as well")


def _require_same(replayed: Tensor, expected: Tensor) -> None:
    if replayed.shape != expected.shape:
        raise CannotCapture(f"a replay returns {tuple(replayed.shape)}, the model itself {tuple(expected.shape)}")
    apart = (
        torch.linalg.vector_norm((replayed - expected).float()) / torch.linalg.vector_norm(expected.float())
    ).item()
    if not apart <= _MOST_DIFFERENCE:
        raise CannotCapture(
            f"a replay gave other hidden states than the model itself (relative difference {apart:.2g})"
        )
