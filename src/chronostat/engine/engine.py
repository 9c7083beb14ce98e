"""``graphed``: decoder and vision tower of a model replayed inside its own ``generate()``."""

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from chronostat.engine.cache import Room, RoomCache
from chronostat.engine.inputs import Inputs, padded_length, read
from chronostat.engine.objections import decoder_of, objection_to_call, why_eager
from chronostat.engine.parts import PartProgram
from chronostat.engine.pool import Pool, why_slower
from chronostat.engine.programs import Decoder, Program, Step, captured
from chronostat.engine.replaying import CannotCapture, Capturing, capturing_on
from chronostat.engine.state import State, States, switches
from chronostat.engine.towers import Encoded, Towers
from chronostat.errors import ConfigError, ModelError
from chronostat.measure.hooks import restorer
from chronostat.measure.replays import Replayed, is_seen_in_replays, replaying, seen_in_replays, tell
from chronostat.models.anatomy import anatomy_of
from chronostat.models.blocks import running_blocks

_ROOM_STEP = 64  # rooms are a multiple of this long: few of them, and whole tiles for the attention's kernels
_PREPARE = "_prepare_cache_for_generation"  # where generate() has settled everything and makes its cache

Way = Literal["graph", "eager"]


@dataclass(kw_only=True)
class Ran:
    """How one ``generate()`` ran.

    Attributes:
        prefill: how its prefill did; None: not yet.
        decode: how its decode steps did, "eager" if one of them was; None: there was none.
        reason: why something was eager; None: nothing was.
        prompt_tokens: of the prefill; None: it was eager.
        padded_tokens: zeros on the right of them; they count as no tokens of the prompt.
        room_tokens: length of the cache; None: the library's own, which grows.
        captured: graphs of the decoder captured during this call, which made it slower.
        evicted: graphs that left the pool for them.
        encoded: how its vision towers and projectors did; those that run eagerly do not make the call eager.
    """

    prefill: Way | None = None
    decode: Way | None = None
    reason: str | None = None
    prompt_tokens: int | None = None
    padded_tokens: int = 0
    room_tokens: int | None = None
    captured: int = 0
    evicted: int = 0
    encoded: Encoded = field(default_factory=Encoded)

    @property
    def way(self) -> Way:
        """The engine of the whole call."""
        return "eager" if self.reason is not None or self.prefill is None else "graph"

    def note(self, step: Step, reason: str | None) -> None:
        """One forward ran: replayed, or eagerly for a reason."""
        if step == "prefill":
            self.prefill = "eager" if reason else "graph"
        elif self.decode != "eager":
            self.decode = "eager" if reason else "graph"
        self.reason = self.reason or reason


@dataclass(frozen=True, kw_only=True)
class _Call:
    state: State
    ran: Ran


class Engine:
    """Runs decoder and vision tower of one model from captured forwards.

    Args:
        model: one for which ``why_eager`` is None.
        capturing: how forwards are captured.
        most_graphs: that are kept.
        padding: the most of a prompt that is padded, as a share of it; 0: graphs are of exact lengths.

    Attributes:
        last: how the last ``generate()`` ran; None: there was none.
    """

    def __init__(self, model: PreTrainedModel, capturing: Capturing, *, most_graphs: int, padding: float) -> None:
        self._model = model
        self._module = decoder_of(model)
        self._forward: Callable[..., Any] = self._module.forward
        self._parameters = tuple(inspect.signature(self._forward).parameters)
        self._capturing = capturing
        self._padding = padding
        self._pool = Pool(most_graphs)
        self._rooms: WeakValueDictionary[int, Room] = WeakValueDictionary()
        self._states = States()
        self._calls: WeakKeyDictionary[RoomCache, _Call] = WeakKeyDictionary()
        self._paused = False
        self._towers = Towers(
            model,
            self._module,
            capturing,
            pool=self._pool,
            states=self._states,
            is_paused=lambda: self._paused,
        )
        self.last: Ran | None = None

    @property
    def kept(self) -> tuple[Program, ...]:
        """The captured forwards of the decoder, the one used longest ago first."""
        return tuple(program for program in self._pool.programs if isinstance(program, Program))

    @property
    def kept_parts(self) -> tuple[PartProgram, ...]:
        """Those of vision towers and projectors."""
        return tuple(program for program in self._pool.programs if isinstance(program, PartProgram))

    @property
    def fewest_graphs(self) -> int:
        """Those of one answer: its prefill, its decode steps, and one for each part that encodes the image."""
        return 2 + len(self._towers.parts)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Calls inside run eagerly; what was captured is kept."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def installed(self) -> Generator[None]:
        """The model runs by this engine meanwhile; afterwards nothing of it is left, its memory neither."""
        with ExitStack() as undo:
            undo.callback(self._pool.clear)
            for module in self._model.modules():
                if isinstance(module, GenerationMixin):
                    self._replace(undo, module, _PREPARE, self._prepare(getattr(module, _PREPARE)))
            undo.enter_context(replaying(self._model, lambda: self.last and self.last.reason))
            self._replace(undo, self._module, "forward", self._decode(self._forward))
            undo.enter_context(self._towers.installed())
            yield

    def _replace(self, undo: ExitStack, owner: nn.Module, name: str, new: Callable[..., Any]) -> None:
        undo.callback(restorer(owner, name))
        setattr(owner, name, new)

    def _prepare(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare(
            generation_config: GenerationConfig,
            model_kwargs: dict[str, Any],
            generation_mode: GenerationMode,
            batch_size: int,
            max_cache_length: int,
        ) -> Any:  # noqa: ANN401 - whatever the library returns
            given = model_kwargs.get("past_key_values")
            result = original(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
            self.last = Ran(encoded=self._towers.encoded)
            reason = "past_key_values is your own cache" if given is not None else None
            reason = "the engine is paused" if self._paused else reason
            reason = "another thread is in a call" if self._towers.are_busy else reason
            reason = reason or objection_to_call(
                self._module, generation_config, model_kwargs, generation_mode, batch_size
            )
            if reason is None:
                layers = len(model_kwargs["past_key_values"].layers)
                reason = self._lend(model_kwargs, layers, max_cache_length, self.last)
            self.last.reason = reason
            return result

        return prepare

    def _lend(self, arguments: dict[str, Any], layers: int, tokens: int, ran: Ran) -> str | None:
        """Put a cache of the engine into the arguments; or say why not."""
        length = -(-padded_length(max(1, tokens), self._padding) // _ROOM_STEP) * _ROOM_STEP
        room = self._rooms.get(length)
        if room is None:
            room = self._rooms[length] = Room(layers, length, self._model.device)
        if room.is_lent:
            return "the cache of another call is still in use"
        cache = arguments["past_key_values"] = room.lend()
        ran.room_tokens = length
        self._calls[cache] = _Call(state=self._states.now(self._module.modules(), switches()), ran=ran)
        return None

    def _decode(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever the decoder takes
            arguments = {**dict(zip(self._parameters, args, strict=False)), **kwargs} if args else kwargs
            cache = arguments.get("past_key_values")
            call = self._calls.get(cache) if isinstance(cache, RoomCache) else None
            if cache is None or call is None:
                return original(*args, **kwargs)
            return self._run(call, cache, arguments)

        return seen_in_replays(forward)

    def _run(self, call: _Call, cache: RoomCache, arguments: dict[str, Any]) -> Any:  # noqa: ANN401
        """One forward of a call with a cache of the engine."""
        step: Step = "decode" if cache.written.tokens else "prefill"
        made = call.ran.captured
        try:
            inputs = _readable(arguments, step)
            program = self._program(call, cache, arguments, inputs)
            output = program.run(inputs, cache)
        except CannotCapture as cannot:
            call.ran.note(step, str(cannot))
            output = self._forward(**arguments)
            cache.written.tokens = cache.written.end
            return output
        cache.written.tokens += inputs.tokens
        call.ran.note(step, None)
        self._tell(program, call.ran.captured - made)
        return output

    def _program(self, call: _Call, cache: RoomCache, arguments: dict[str, Any], inputs: Inputs) -> Program:
        length, before = inputs.tokens, cache.written.tokens
        assert isinstance(before, int), "the host counts the tokens of a call"
        cache.room.require(before + length)
        if not before:
            length = self._padded(cache.room, inputs)
            call.ran.prompt_tokens, call.ran.padded_tokens = inputs.tokens, length - inputs.tokens
        key = (call.state, bool(before), cache.room.length, length, inputs.signature())
        program = self._pool.find(key)
        if program is None:
            decoder = Decoder(module=self._module, forward=self._forward, blocks=self._blocks)
            try:
                program = captured(decoder, arguments, inputs, length, self._capturing, self._pool.replays)
            except CannotCapture as cannot:
                self._pool.refuse(key, str(cannot))
                raise
            call.ran.captured += 1
            call.ran.evicted += self._pool.keep(key, program)
        assert isinstance(program, Program), "its key begins with a state of the decoder"
        return program

    def _padded(self, room: Room, inputs: Inputs) -> int:
        length = padded_length(inputs.tokens, self._padding) if inputs.can_be_padded else inputs.tokens
        return length if length <= room.length else inputs.tokens

    def _blocks(self) -> tuple[nn.Module, nn.Module]:
        blocks = running_blocks(self._model, anatomy_of(self._model).blocks)
        return blocks[0], blocks[-1]

    def _tell(self, program: Program, made: int) -> None:
        tell(self._model, Replayed(blocks=program.replay.marks, captured=why_slower(made)))


def _readable(arguments: dict[str, Any], step: Step) -> Inputs:
    """The arguments sorted.

    Raises:
        CannotCapture: no graph can be given them.
    """
    inputs = read(arguments)
    if isinstance(inputs, str):
        raise CannotCapture(inputs)
    if step == "decode" and inputs.tokens != 1:
        raise CannotCapture(f"a forward of {inputs.tokens} tokens after the prefill")
    if step == "decode" and "attention_mask" in inputs.tensors:
        raise CannotCapture("its decoder is given a mask of its own for each step")
    return inputs


@contextmanager
def graphed(
    model: PreTrainedModel, *, most_graphs: int = 64, padding: float = 0.02, capturing: Capturing | None = None
) -> Generator[Engine]:
    """Replay a model, for the length of the ``with``: vision tower, projector, prefill and decode steps.

    ``model.generate(...)`` stays the library's own, with all its arguments; head, sampling, logits processors, stopping
    criteria and streaming run as ever. A length of prompt, a shape of images, or a state of the model, that is new is
    captured at its first call. What cannot be replayed runs as without this; ``Engine.last`` says why.

    Args:
        model: on one device.
        most_graphs: that are kept; the one used longest ago leaves first.
        padding: the most of a prompt that is padded, as a share of it; 0: exact lengths, bit for bit the same prefill.
        capturing: CUDA graphs on CUDA and calls in plain Python elsewhere if absent.

    Raises:
        ConfigError: ``most_graphs`` or ``padding`` is out of range.
        ModelError: no call of this model can be replayed; says why. Or it is replayed already.
    """
    if not 0 <= padding <= 1:
        raise ConfigError(f"padding = {padding!r}: give a share of the prompt from 0 to 1")
    reason = why_eager(model)
    if reason is not None:
        raise ModelError(f"{type(model).__name__} cannot run by the engine 'graph': {reason}; use 'eager'")
    if is_seen_in_replays(decoder_of(model).forward):
        raise ModelError(f"{type(model).__name__} runs by the engine 'graph' already; leave one of the two out")
    engine = Engine(model, capturing or capturing_on(model.device), most_graphs=most_graphs, padding=padding)
    fewest = engine.fewest_graphs
    if most_graphs < fewest:
        raise ConfigError(
            f"most_graphs = {most_graphs!r}: an answer about an image needs {fewest}, give at least as many"
        )
    with engine.installed():
        yield engine
