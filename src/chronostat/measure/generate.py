"""``measure_generate``: one real ``generate()`` call, measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from chronostat.errors import DataError
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.stages import StageRecorder
from chronostat.models.anatomy import anatomy_of
from chronostat.records import StageTiming

Batch = Mapping[str, Tensor]
IMAGE_KEYS = ("pixel_values", "images", "pixel_values_images", "image_patches")
VIDEO_KEYS = ("pixel_values_videos", "videos", "video_grid_thw")


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
        model: any model that generates with transformers.
        batch: one request as ``generate()`` takes it, tensors on the model's device; ``input_ids`` has shape [1, T].
        max_new_tokens: longest answer in tokens.
        generation_config: passed on to ``generate()``.
        clock: the device's own clock if absent.

    Raises:
        DataError: the batch has no ``input_ids``, holds more than one request or a video.
        ModelError: the decoder blocks were not found; name them with ``anatomy_of(model, layout)``.
        Exception: whatever the model raises; nothing stays installed.
    """
    check_batch(batch)
    clock = clock or clock_for(batch["input_ids"].device)
    arguments = {**batch, "max_new_tokens": max_new_tokens}
    if generation_config is not None:
        arguments["generation_config"] = generation_config
    with StageRecorder(model, anatomy_of(model), clock) as recorder:
        clock.restart()
        clock.synchronize()
        start_ns, entry = clock.host_ns(), clock.mark()
        output = model.generate(**arguments, stopping_criteria=StoppingCriteriaList([recorder.tokens]))
        clock.synchronize()
        total_ms = clock.host_ms_since(start_ns)
    sequences = output if isinstance(output, Tensor) else output.sequences
    output_ids = _new_tokens(model, batch, sequences)
    timing = recorder.timing(
        entry=entry,
        total_ms=total_ms,
        new_tokens=len(output_ids),
        sees_image=any(batch.get(key) is not None for key in IMAGE_KEYS),
        one_path=_one_path(generation_config or model.generation_config),
    )
    return Measured(output_ids=output_ids, sequences=sequences, timing=timing)


def check_batch(batch: Batch) -> None:
    """Refuse what cannot be measured as one request.

    Raises:
        DataError: no ``input_ids``, more than one request, or a video.
    """
    video = next((key for key in VIDEO_KEYS if batch.get(key) is not None), None)
    if video:
        raise DataError(f"the batch holds a video ({video}); only images and text can be measured, leave the video out")
    ids = batch.get("input_ids")
    if ids is None or ids.ndim != 2:
        raise DataError("the batch needs input_ids of shape [1, tokens], as the processor makes them")
    if ids.shape[0] != 1:
        raise DataError(
            f"batch size {ids.shape[0]} is not supported: requests run one at a time, pass input_ids [1, T]"
        )


def _new_tokens(model: PreTrainedModel, batch: Batch, sequences: Tensor) -> tuple[int, ...]:
    prompt = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
    return tuple(sequences[0, prompt:].tolist())


def _one_path(config: GenerationConfig) -> bool:
    """Whether one token follows the other, so that decode per token has a meaning: no beams, nothing assisted."""
    return (config.num_beams or 1) == 1 and not config.prompt_lookup_num_tokens
