"""``measure_generate``: one real ``generate()`` call, measured."""

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode

from chronostat.errors import DataError, MeasurementError, ModelError
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.stages import StageRecorder
from chronostat.models.anatomy import anatomy_of
from chronostat.records import StageTiming

Batch = Mapping[str, Tensor]
IMAGE_KEYS = ("pixel_values", "images", "pixel_values_images", "image_patches", "flattened_patches")
VIDEO_KEYS = ("pixel_values_videos", "videos", "video_grid_thw")


class Generative(Protocol):
    """What is used of a model that generates."""

    generation_config: GenerationConfig | None

    def generate(self, **arguments: Any) -> Any:  # noqa: ANN401 - ids, or an output object that holds them
        """New tokens after the prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one ``generate()`` call returned, and what it cost.

    Attributes:
        output_ids: the new tokens only.
        sequences: what ``generate()`` returned, shape [1, prompt + new] (encoder-decoder: [1, 1 + new]).
    """

    output_ids: tuple[int, ...]
    sequences: Tensor
    timing: StageTiming


def measure_generate(
    model: PreTrainedModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    generation_config: GenerationConfig | None = None,
    clock: Clock | None = None,
) -> Measured:
    """Call ``model.generate(**batch)`` once and measure its stages by docs/definitions.md.

    The output is that of an uninstrumented call. Hooks are gone when this returns or raises.

    Args:
        model: any model that generates with transformers, on one device.
        batch: one request as ``generate()`` takes it, tensors on the model's device; ``input_ids`` has shape [1, T]
            (absent for models whose main input is the image).
        max_new_tokens: longest answer in tokens.
        generation_config: passed on to ``generate()``.
        clock: the device's own clock if absent.

    Raises:
        DataError: the batch has no ``input_ids``, holds more than one request, a video, or tensors of another device.
        ModelError: the model cannot generate, not one token after the other (block diffusion), or lies on several
            devices, or its decoder blocks were not found; name them with ``anatomy_of(model, layout)``.
        MeasurementError: another measurement is running on this device.
        Exception: whatever the model raises; nothing stays installed.
    """
    with sole_measurement(device_of(model)):
        return measure_alone(
            model, batch, max_new_tokens=max_new_tokens, generation_config=generation_config, clock=clock
        )


def measure_alone(
    model: PreTrainedModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    generation_config: GenerationConfig | None,
    clock: Clock | None,
) -> Measured:
    """``measure_generate`` for a caller that holds ``sole_measurement`` itself."""
    _check_model(model)
    generative = cast("Generative", model)
    device = device_of(model)
    check_batch(batch, device, main_input=model.main_input_name)
    config = effective_config(generative, generation_config)
    if (config.num_return_sequences or 1) != 1:
        raise DataError(f"num_return_sequences = {config.num_return_sequences}: a request has one answer, use 1")
    clock = clock or clock_for(device)
    with StageRecorder(model, anatomy_of(model), clock) as recorder:
        arguments: dict[str, Any] = {**batch, **_length(max_new_tokens, generation_config)}
        arguments["stopping_criteria"] = StoppingCriteriaList([recorder.tokens])
        clock.restart()
        clock.synchronize()
        start_ns, entry = clock.host_ns(), clock.mark()
        output = generative.generate(**arguments)
        clock.synchronize()
        total_ms = clock.host_ms_since(start_ns)
    sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
    assisted = config.get_generation_mode() == GenerationMode.ASSISTED_GENERATION
    seen = 0 if assisted else recorder.tokens.first_length  # an assisted round may add several tokens at once
    output_ids = tuple(sequences[0, seen - 1 if seen else _prompt_length(model, batch) :].tolist())
    timing = recorder.timing(
        entry=entry,
        total_ms=total_ms,
        new_tokens=len(output_ids),
        sees_image=any(batch.get(key) is not None for key in IMAGE_KEYS),
        one_path=takes_one_path(config),
    )
    return Measured(output_ids=output_ids, sequences=sequences, timing=timing)


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


def device_of(model: PreTrainedModel) -> torch.device:
    """The device of all weights.

    Raises:
        ModelError: there is more than one.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise ModelError(
            f"{type(model).__name__} is spread over {', '.join(sorted(map(str, devices)))}; one clock can only follow "
            "one device, load the model on a single one"
        )
    return devices.pop() if devices else model.device


def _check_model(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not hasattr(model, "generate"):
        raise ModelError(f"{name} has no generate(); Chronostat needs a model that generates text")
    if not any(isinstance(module, GenerationMixin) for module in model.modules()):
        raise ModelError(
            f"{name} does not generate one token after the other: its generate() is not that of transformers "
            "(GenerationMixin), as in block-diffusion models; it has no prefill and no decode steps to measure"
        )


def check_batch(batch: Batch, device: torch.device, *, main_input: str = "input_ids") -> None:
    """Refuse what cannot be measured as one request.

    Args:
        batch: as ``generate()`` takes it.
        device: the model's.
        main_input: what the model takes if the batch holds no ``input_ids``: pixels in some models.

    Raises:
        DataError: no ``input_ids``, more than one request, a video, or a tensor that is not on ``device``.
    """
    video = next((key for key in VIDEO_KEYS if batch.get(key) is not None), None)
    if video:
        raise DataError(f"the batch holds a video ({video}); only images and text can be measured, leave the video out")
    ids = batch.get("input_ids")
    first = batch.get(main_input) if ids is None else ids
    if first is None or (ids is not None and ids.ndim != 2):
        raise DataError("the batch needs input_ids of shape [1, tokens], as the processor makes them")
    if first.shape[0] != 1:
        raise DataError(
            f"batch size {first.shape[0]} is not supported: requests run one at a time, pass input_ids [1, T]"
        )
    elsewhere = [key for key, value in batch.items() if getattr(value, "device", device) != device]
    if elsewhere:
        raise DataError(
            f"{', '.join(elsewhere)} on {batch[elsewhere[0]].device}, the model on {device}; move the batch there "
            "first, so that the copy is not part of the measurement"
        )


def effective_config(model: Generative, generation_config: GenerationConfig | None) -> GenerationConfig:
    """The given configuration, with the model's own values where it leaves them open, as ``generate()`` reads it."""
    config = copy.deepcopy(generation_config) if generation_config is not None else GenerationConfig()
    if model.generation_config is not None:
        config.update(**model.generation_config.to_dict(), defaults_only=True)
    return config


def require_one_path(model: PreTrainedModel) -> None:
    """Accept a model that is set to greedy decoding or sampling.

    Raises:
        MeasurementError: it is set to beams or assisted decoding, which cannot be learned from.
    """
    config = effective_config(cast("Generative", model), None)
    if not takes_one_path(config):
        raise MeasurementError(
            f"the model's generation_config asks for {config.get_generation_mode().value}, where decode per token has "
            "no meaning; settings are compared with greedy decoding or sampling, set num_beams = 1 and no assistant"
        )


def takes_one_path(config: GenerationConfig) -> bool:
    """Whether one token follows the other, so that decode per token has a meaning: no beams, nothing assisted."""
    return config.get_generation_mode() in {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE}


def _length(max_new_tokens: int, generation_config: GenerationConfig | None) -> dict[str, Any]:
    """The arguments of ``generate()`` that say how long; it takes either a configuration or single values."""
    if generation_config is None:
        return {"max_new_tokens": max_new_tokens}
    config = copy.deepcopy(generation_config)
    config.max_new_tokens = max_new_tokens
    return {"generation_config": config}


def _prompt_length(model: PreTrainedModel, batch: Batch) -> int:
    """How many tokens of the sequence are no answer, where no token mark says it."""
    if model.config.is_encoder_decoder:
        return 1
    return batch["input_ids"].shape[1] if "input_ids" in batch else 0
