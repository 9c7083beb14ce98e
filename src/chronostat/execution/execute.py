"""Where model, knobs and clock meet: apply a setting, generate once, measure, undo, score.

This is the heart of the product. Nothing else in Chronostat calls ``generate()``.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin, StoppingCriteria

from chronostat.data.quality import Quality, score
from chronostat.data.samples import Sample
from chronostat.errors import ChronostatError, ConfigError, DataError, KnobError, MeasurementError
from chronostat.knobs.registry import applied, find_knob, tokens_read
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.decoding import decoding_of, seeded
from chronostat.measure.generate import Batch, Measured, check_batch, device_of, measure_alone, sole_measurement
from chronostat.models.prepare import count_image_tokens, prepare, prompt_length
from chronostat.records import NOT_CALLED, Execution, Setting

_SEEDS = 2**63  # the store holds no larger number


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A sample with the processor that makes it a batch, preprocessed under the setting and scored.

    Attributes:
        images: the sample's images, loaded; outside every clock.
        quality: how the answer is scored; None for a request without reference answers.
    """

    sample: Sample
    images: Sequence[Image]
    processor: ProcessorMixin
    quality: Quality | None


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """A ready batch as ``generate()`` takes it; its image tokens are fixed, so ``vision_tokens`` must be full.

    Attributes:
        score: quality in [0, 1] from the new tokens; None: there is no quality.
        processor: decodes the answer, where there is one.
    """

    batch: Batch
    id: str
    split: str = "train"
    kind: str | None = None
    score: Callable[[Sequence[int]], float] | None = None
    processor: ProcessorMixin | None = None


Request = SampleRequest | BatchRequest


def request_for(sample: Sample, processor: ProcessorMixin, quality: Quality | None) -> SampleRequest:
    """Load a sample's images.

    Raises:
        DataError: an image cannot be read, or there is none.
    """
    images = sample.load_images()
    if not images:
        raise DataError(f"sample {sample.id} has no image")
    return SampleRequest(sample=sample, images=images, processor=processor, quality=quality)


def execute(
    model: PreTrainedModel,
    request: Request,
    *,
    setting: Setting,
    max_new_tokens: int,
    generation_config: GenerationConfig | None = None,
    controller_ms: float = 0.0,
    clock: Clock | None = None,
    time_limit_s: float | None = None,
    sampling_seed: int | None = None,
    seen: Callable[[Measured], None] | None = None,
    criteria: Sequence[StoppingCriteria] = (),
) -> Execution:
    """Apply the knobs, call ``generate()`` once, measure it, undo the knobs, score the answer.

    Args:
        model: the model; as it was afterwards, also when something raises.
        request: a sample with its processor, or a ready batch.
        setting: values for some or all knobs; the others stay as the model was built.
        max_new_tokens: longest answer in tokens.
        generation_config: passed on to ``generate()``; it cannot ask for sampling without ``sampling_seed``.
        controller_ms: what choosing the setting cost; charged to the request.
        clock: the device's own clock if absent.
        time_limit_s: a generation that takes longer is ended; None: no limit.
        sampling_seed: tokens are drawn from it as the model's generation_config samples; the same seed gives the same
            answer, and torch's own random streams go on as without the call. None: greedy, whatever the
            generation_config says.
        seen: told what was measured beyond the record: when each stage was, whether decoding was compiled.
        criteria: asked at every token beside the model's own whether the answer ends; they may read it as it comes.

    Raises:
        KnobError: an unknown knob, an illegal value, or ``vision_tokens`` below full for a ready batch.
        DataError: a batch that is not one request, or on another device.
        ModelError: the model lies on several devices or cannot generate.
        ConfigError: there is a seed and the model does not sample, or sampling was asked for and there is no seed.
        MeasurementError: another measurement is running on this device, or the model decodes by beams or with an
            assistant; it was not touched.
        GenerationTimeout: the generation took longer than ``time_limit_s``; the knobs are undone.
        Exception: whatever the model raises: a failed execution is never a number. What is raised before its call has
            the note ``NOT_CALLED``.
    """
    device = device_of(model)
    clock = clock or clock_for(device)
    _check_types(request, setting, sampling_seed)
    decoding = decoding_of(model, sample=sampling_seed is not None, given=generation_config)
    if isinstance(request, BatchRequest):
        check_batch(request.batch, device)
        _check_vision_is_full(setting, model, request.processor)
    with ExitStack() as undo:
        with _not_called():
            undo.enter_context(sole_measurement(device))
            image_arguments = undo.enter_context(applied(setting, model, request.processor))
            batch, preprocess_ms = _batch(model, request, image_arguments, clock)
        undo.enter_context(seeded(device, sampling_seed))
        measured = measure_alone(
            model,
            batch,
            device,
            max_new_tokens=max_new_tokens,
            generation_config=decoding.config(generation_config),
            clock=clock,
            time_limit_s=time_limit_s,
            criteria=criteria,
        )
    if seen is not None:
        seen(measured)
    answer = _answer(request.processor, measured)
    made, prompt = count_image_tokens(model, batch), prompt_length(batch)
    read = tokens_read(setting, model, request.processor, made)
    left_out = 0 if made is None or read is None else made - read
    return Execution(
        **identity(request),
        setting=setting,
        timing=measured.timing,
        output_ids=measured.output_ids,
        answer=answer,
        quality=_quality(request, measured, answer),
        preprocess_ms=preprocess_ms,
        controller_ms=controller_ms,
        prompt_tokens=None if prompt is None else prompt - left_out,
        image_tokens=read,
        disturbed=measured.disturbed,
        sampling_seed=sampling_seed,
    )


def without_capturing(
    execute_once: Callable[[Callable[[Measured], None]], Execution],
) -> tuple[Execution, Measured]:
    """An execution in which the engine captured nothing: one in which it did took the time of capturing, so once more.

    Args:
        execute_once: executes and tells its argument what was measured, as ``seen`` of ``execute``.

    Returns:
        The execution, and all that was measured of it.
    """
    seen: list[Measured] = []
    execution = execute_once(seen.append)
    if seen[-1].captured:
        execution = execute_once(seen.append)
    return execution, seen[-1]


def require_replayed(measured: Measured, what: str) -> None:
    """Accept what ran by the engine that its model runs by, where there is no record to keep a failure in.

    Raises:
        MeasurementError: it fell back; names ``what`` was executed.
    """
    if measured.fell_back is not None:
        raise MeasurementError(
            f"{what} fell back from the engine 'graph' ({measured.fell_back}); measure with --engine eager"
        )


def _check_types(request: object, setting: object, sampling_seed: object) -> None:
    if not isinstance(setting, Setting):
        raise KnobError(f"setting = {setting!r} is a {type(setting).__name__}; give Setting.parse('knob=value ...')")
    if not isinstance(request, SampleRequest | BatchRequest):
        raise DataError(
            f"the request is a {type(request).__name__}; make it with request_for(sample, processor, quality), or from "
            "a ready batch with BatchRequest"
        )
    if sampling_seed is not None and not (isinstance(sampling_seed, int) and 0 <= sampling_seed < _SEEDS):
        raise ConfigError(
            f"sampling_seed = {sampling_seed!r}: give a whole number of at least 0 and below 2**63, or leave it out"
        )


@contextmanager
def _not_called() -> Generator[None]:
    """Note on whatever is raised inside that ``generate()`` was not called."""
    try:
        yield
    except Exception as error:
        error.add_note(NOT_CALLED)
        raise


@contextmanager
def explaining_errors(what: str) -> Generator[None]:
    """Around executions that end a command if they fail: whatever the model raises is told in one sentence.

    Args:
        what: is executed, for the message.

    Raises:
        MeasurementError: the model raised something that is no error of Chronostat.
    """
    try:
        yield
    except ChronostatError:
        raise
    except Exception as error:  # what a model can raise is not known
        raise MeasurementError(
            f"{what} ended with {type(error).__name__} ({str(error).strip()}); see that the model answers this request "
            "without being measured, and that there is enough memory for it"
        ) from error


class Identity(TypedDict):
    """What a record says about who was executed."""

    sample_id: str
    split: str
    kind: str | None


def identity(request: Request) -> Identity:
    """Sample id, split and kind of a request."""
    source = request.sample if isinstance(request, SampleRequest) else request
    return Identity(sample_id=source.id, split=source.split, kind=source.kind)


def _check_vision_is_full(setting: Setting, model: PreTrainedModel, processor: ProcessorMixin | None) -> None:
    asked = setting.get("vision_tokens")
    if asked is None:
        return
    if processor is None or asked != find_knob("vision_tokens", model, processor).full:
        raise KnobError(
            f"vision_tokens = {asked} on a ready batch, whose image tokens are already made; leave vision_tokens out, "
            "or pass the sample with its processor"
        )


def _batch(
    model: PreTrainedModel, request: Request, image_arguments: Mapping[str, Any], clock: Clock
) -> tuple[dict[str, Tensor], float | None]:
    if isinstance(request, BatchRequest):
        return dict(request.batch), None
    clock.synchronize()  # what was queued before is not part of it
    start_ns = clock.host_ns()
    batch = prepare(
        request.processor,
        request.images,
        request.sample.asked,
        device=model.device,
        dtype=model.dtype,
        image_arguments=image_arguments,
    )
    clock.synchronize()
    return batch, clock.host_ms_since(start_ns)


def _answer(processor: ProcessorMixin | None, measured: Measured) -> str | None:
    if processor is None:
        return None
    return processor.decode(torch.tensor(measured.output_ids), skip_special_tokens=True).strip()


def _quality(request: Request, measured: Measured, answer: str | None) -> float | None:
    if isinstance(request, BatchRequest):
        return None if request.score is None else request.score(measured.output_ids)
    if request.quality is None or answer is None or not request.sample.references:
        return None
    return score(request.quality, answer, request.sample)
