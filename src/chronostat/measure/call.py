"""The core of every measurement: one call of a model's own ``generate``, with clocks and hooks around it."""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from chronostat.errors import ExecutionError, MeasurementError, ModelError
from chronostat.machine.disturbance import Watch
from chronostat.machine.stabilise import collector_at_rest
from chronostat.measure.arguments import (
    CallArguments,
    check_answers,
    check_batch,
    main_input_of,
    read_call,
    with_criterion,
)
from chronostat.measure.clock import Clock, TimeLimit, clock_for
from chronostat.measure.cross_checks import HostClockCheck, StreamCheck, TimedMark, span_doubt
from chronostat.measure.hooks import StageRecorder, TokenMarks
from chronostat.measure.replays import fell_back
from chronostat.measure.stages import CallOutcome, Waterfall, timing_of, waterfall_of
from chronostat.models.anatomy import Anatomy, anatomy_of
from chronostat.models.compiled import graphs_compiled, require_hooks_fire
from chronostat.models.locate import config_of
from chronostat.records import StageTiming


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one ``generate()`` call returned, and what it cost.

    Attributes:
        output_ids: the new tokens only.
        sequences: what ``generate()`` returned, shape [1, prompt + new] (encoder-decoder: [1, 1 + new]).
        disturbed: what else happened on the machine meanwhile that makes the numbers doubtful; None: nothing seen.
        compiled: ``generate()`` compiled its decode step, as it does by itself on CUDA with a static cache.
        replayed: the decoder's prefill was replayed by the engine "graph" (``chronostat.engine``).
        captured: something was captured for that meanwhile, so that the next such call is faster.
        fell_back: why the call, or some of it, was eager although the model runs by that engine; None: it was not.
        waterfall: when each stage and each token was, from the same marks as ``timing``.
    """

    output_ids: tuple[int, ...]
    sequences: Tensor
    timing: StageTiming
    disturbed: str | None = None
    compiled: bool = False
    replayed: bool = False
    captured: bool = False
    fell_back: str | None = None
    waterfall: Waterfall = field(default_factory=Waterfall)


def call_measured(
    model: PreTrainedModel,
    device: torch.device,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    clock: Clock | None,
    time_limit_s: float | None,
) -> tuple[Any, Measured]:
    """Call ``function(*args, **kwargs)``, which is the model's ``generate`` or leads to it, and measure its stages.

    For a caller that holds ``sole_measurement`` of ``device``, the model's.

    Returns:
        What the function returned, unchanged, and what it cost.

    Raises:
        DataError: the arguments are not one request on the model's device.
        ModelError: a part of the model is compiled, or its decoder blocks were not found.
        MeasurementError: nothing of the model ran, no token came out, or the clock is that of another device or
            contradicts the system's.
        GenerationTimeout: it took longer than ``time_limit_s``.
        Exception: whatever the model raises; nothing stays installed.
    """
    asked = read_call(model, function, args, kwargs)
    check_batch(asked.batch, device, main_input=main_input_of(model))
    check_answers(asked.config)
    clock = clock or clock_for(device)
    _require_following(clock, device)
    limit, streams, host = TimeLimit(clock, time_limit_s), StreamCheck(device, clock), HostClockCheck(clock)
    anatomy = anatomy_of(model)
    recorder = StageRecorder(model, anatomy, clock, limit=limit, streams=streams, chunked=asked.chunked)
    args, kwargs = with_criterion(model, function, args, kwargs, recorder.tokens)
    with collector_at_rest(), Watch(device) as watch, recorder:
        clock.restart()
        clock.synchronize()
        graphs = graphs_compiled()
        start_ns = host.start_ns()
        entry = TimedMark.by(clock)
        limit.start(start_ns)
        output = function(*args, **kwargs)
        end = TimedMark.by(clock)
        clock.synchronize()
        waited_ms = clock.host_ms_since(end.after_ns)
        total_ms = host.total_ms()
        graphs = graphs_compiled() - graphs
    spans = span_doubt(clock, entry, end, waited_ms=waited_ms, total_ms=total_ms)
    sequences = _sequences(output, recorder.tokens)
    output_ids = _new_tokens(
        sequences, asked, recorder.tokens, encoder_decoder=getattr(config_of(model), "is_encoder_decoder", False)
    )
    _require_work(recorder, output_ids)
    call = CallOutcome(
        entry=entry.mark,
        total_ms=total_ms,
        new_tokens=len(output_ids),
        sees_image=asked.sees_image,
        one_path=asked.one_path,
        doubts=tuple(filter(None, (*_doubts(asked, recorder, anatomy), streams.doubt(), spans))),
    )
    seen = waterfall_of(recorder, clock, entry.mark)
    measured = Measured(
        output_ids=output_ids,
        sequences=sequences,
        timing=timing_of(recorder, seen, call),
        disturbed="; ".join(filter(None, (watch.reason, _compiling(graphs), recorder.captured))) or None,
        compiled=recorder.compiled,
        replayed=recorder.replayed,
        captured=recorder.captured is not None,
        fell_back=fell_back(model, replayed=recorder.replayed),
        waterfall=seen,
    )
    return output, measured


def check_model(model: PreTrainedModel) -> None:
    """Refuse what does not generate one token after the other, and what was compiled as a whole.

    Raises:
        ModelError: says which.
    """
    name = type(model).__name__
    if not hasattr(model, "generate"):
        raise ModelError(
            f"a {name} has no generate(); pass a model of transformers that generates text, such as load_vlm().model"
        )
    require_hooks_fire(model, ())
    if not any(isinstance(module, GenerationMixin) for module in model.modules()):
        raise ModelError(
            f"{name} does not generate one token after the other with transformers: neither it nor a model inside is a "
            "GenerationMixin, whose loop is asked for a mark per token. A block-diffusion model has no prefill and no "
            "decode steps to measure; for an own loop, add GenerationMixin to the bases and leave generate() to it"
        )


def device_of(model: PreTrainedModel) -> torch.device:
    """The device of all weights.

    Raises:
        ModelError: there is more than one, or this is no model.
    """
    if not hasattr(model, "parameters"):
        raise ModelError(f"a {type(model).__name__} is no model; pass one of transformers, such as load_vlm().model")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise ModelError(
            f"{type(model).__name__} is spread over {', '.join(sorted(map(str, devices)))}; one clock can only follow "
            "one device, load the model on a single one"
        )
    return devices.pop() if devices else model.device


_busy: set[torch.device] = set()
_busy_lock = Lock()


@contextmanager
def sole_measurement(device: torch.device) -> Generator[None]:
    """Hold a device for one measurement.

    Raises:
        MeasurementError: it is held already, by another thread or by the call that this one is nested in.
    """
    with _busy_lock:
        if device in _busy:
            raise MeasurementError(
                f"another measurement is running on {device}: requests run one at a time, or each would count the "
                "other's work; wait for it, or use another process"
            )
        _busy.add(device)
    try:
        yield
    finally:
        with _busy_lock:
            _busy.discard(device)


def _require_following(clock: Clock, device: torch.device) -> None:
    if not isinstance(clock, Clock):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may have no types
        raise MeasurementError(
            f"clock = {clock!r} is no Clock of chronostat.measure; leave it out, or take clock_for(device)"
        )
    if not clock.follows(device):
        raise MeasurementError(
            f"a {type(clock).__name__} of another device does not follow {device}: its marks would not lie where the "
            "model works; leave the clock out, or take clock_for(device)"
        )


def _sequences(output: Any, tokens: TokenMarks) -> Tensor:  # noqa: ANN401 - ids, or an output object
    sequences = getattr(output, "sequences", output)
    if isinstance(sequences, Tensor):
        return sequences
    if isinstance(output, Iterator) or inspect.isawaitable(output):
        raise MeasurementError(
            f"generate() returned a {type(output).__name__}, which has not yielded a token yet: what it does later is "
            "outside the measurement; measure a call that returns when the answer is complete"
        )
    if tokens.sequence is None:
        raise MeasurementError(
            f"generate() returned a {type(output).__name__} and asked no stopping criteria: its tokens cannot be "
            "counted; it must return the ids or an object with .sequences"
        )
    return tokens.sequence


def _new_tokens(
    sequences: Tensor, asked: CallArguments, tokens: TokenMarks, *, encoder_decoder: bool
) -> tuple[int, ...]:
    if tokens.first_length and not asked.assisted:  # an assisted round may add several tokens at once
        start = tokens.first_length - 1
    elif encoder_decoder:
        start = 1
    else:
        ids = asked.batch.get("input_ids")
        start = 0 if ids is None else ids.shape[1]
    return tuple(sequences[0, start:].tolist())


def _require_work(recorder: StageRecorder, output_ids: Sequence[int]) -> None:
    if not output_ids:
        raise ExecutionError(
            "generate() yielded no token: there is no first token and no answer to measure; allow at least one new "
            "token, and see that the prompt does not end the generation"
        )
    if not recorder.ran and not recorder.tokens.marks:
        raise ExecutionError(
            f"generate() returned {len(output_ids)} tokens, but no part of the model ran: the answer was stored "
            "before, or another model gave it; its time is no latency of this model"
        )


def _compiling(graphs: int) -> str | None:
    return f"torch compiled {graphs} graph(s) meanwhile, as a first call does: warm up" if graphs else None


def _doubts(asked: CallArguments, recorder: StageRecorder, anatomy: Anatomy) -> Iterator[str]:
    if asked.sees_image:
        yield from anatomy.doubts
    if asked.kept_tokens:
        yield f"past_key_values brought the keys and values of {asked.kept_tokens} tokens: not all of the prompt ran"
    if recorder.compiled and asked.chunked:
        yield "generate() compiled a prefill in chunks, where no hook may be"
    yield from recorder.doubts()
