"""What a call of ``generate()`` asks for, read from its arguments, whoever wrote them."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode

from chronostat.errors import DataError

Batch = Mapping[str, Tensor]
IMAGE_KEYS = ("pixel_values", "images", "pixel_values_images", "image_patches", "flattened_patches")
VIDEO_KEYS = ("pixel_values_videos", "videos", "video_grid_thw")
_CRITERIA = "stopping_criteria"


class Generative(Protocol):
    """What is used of a model that generates."""

    generation_config: GenerationConfig | None

    def generate(self, **arguments: Any) -> Any:  # noqa: ANN401 - ids, or an output object that holds them
        """New tokens after the prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class CallArguments:
    """One call of ``generate()``.

    Attributes:
        batch: everything that was passed, by name; a batch that was passed as one mapping is opened.
        mode: how tokens are chosen.
        config: in effect.
        kept_tokens: tokens whose keys and values the caller brings along: their prefill is not part of the call.
    """

    batch: Mapping[str, Any]
    mode: GenerationMode
    config: GenerationConfig
    kept_tokens: int

    @property
    def sees_image(self) -> bool:
        """Whether there is an image to encode."""
        return any(self.batch.get(key) is not None for key in IMAGE_KEYS)

    @property
    def one_path(self) -> bool:
        """Whether one token follows the other."""
        return self.mode in ONE_PATH

    @property
    def assisted(self) -> bool:
        """Whether a round may add several tokens at once."""
        return self.mode == GenerationMode.ASSISTED_GENERATION

    @property
    def chunked(self) -> bool:
        """Whether the prefill runs in chunks."""
        return getattr(self.config, "prefill_chunk_size", None) is not None


ONE_PATH = {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE}


def read_call(
    model: PreTrainedModel, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> CallArguments:
    """What ``function(*args, **kwargs)`` asks the model for.

    Raises:
        TypeError: the arguments do not fit the function, as calling it would say.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named.update(zip(_passed_on(model), value, strict=False))
            continue
        whole_batch = isinstance(value, Mapping) and "input_ids" in value
        named.update(value if kind is inspect.Parameter.VAR_KEYWORD or whole_batch else {name: value})
    if named.get("inputs") is not None:
        named[main_input_of(model)] = named.pop("inputs")
    given = named.get("generation_config")
    config = effective_config(model, given if isinstance(given, GenerationConfig) else None)
    for name, value in named.items():
        if name in vars(config):
            setattr(config, name, value)
    length: Callable[[], int] | None = getattr(named.get("past_key_values"), "get_seq_length", None)
    return CallArguments(
        batch=named,
        config=config,
        mode=config.get_generation_mode(named.get("assistant_model")),
        kept_tokens=0 if length is None else int(length()),
    )


def _passed_on(model: nn.Module) -> list[str]:
    """Names of what a ``generate(*args, **kwargs)`` that wraps another is given by position: those of the inner one."""
    for inner in model.modules():
        generate = getattr(type(inner), "generate", None)
        parameters = list(inspect.signature(generate).parameters.values())[1:] if generate is not None else []
        if parameters and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            return [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return []


def main_input_of(model: nn.Module) -> str:
    """What the model takes first."""
    return getattr(model, "main_input_name", "input_ids")


def with_criterion(
    model: nn.Module,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    criterion: StoppingCriteria,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with one more stopping criterion, after the caller's own; those are not changed.

    A function that takes none is left alone.
    """
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs)
    others = next((p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    rest = next((p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    passed_on: tuple[Any, ...] = bound.arguments.get(rest, ()) if rest is not None else ()
    position = dict(zip(_passed_on(model), range(len(passed_on)), strict=False)).get(_CRITERIA)
    if rest is not None and position is not None:
        criteria = _with(passed_on[position], criterion)
        bound.arguments[rest] = (*passed_on[:position], criteria, *passed_on[position + 1 :])
        return bound.args, bound.kwargs
    if _CRITERIA in signature.parameters:
        place: dict[str, Any] = bound.arguments
    elif others is not None:
        place = bound.arguments.setdefault(others, {})
    else:
        return tuple(args), dict(kwargs)
    place[_CRITERIA] = _with(place.get(_CRITERIA), criterion)
    return bound.args, bound.kwargs


def _with(given: Any, criterion: StoppingCriteria) -> list[Any]:  # noqa: ANN401 - a list of any kind, or None
    criteria: list[Any] = copy.copy(given) if isinstance(given, list) else StoppingCriteriaList(given or ())
    criteria.append(criterion)
    return criteria


def effective_config(model: nn.Module, generation_config: GenerationConfig | None) -> GenerationConfig:
    """The given configuration, with the model's own values where it leaves them open, as ``generate()`` reads it.

    The values of a model whose own ``generate()`` leads to that of a language model inside are those of the latter.
    """
    config = copy.deepcopy(generation_config) if generation_config is not None else GenerationConfig()
    found = (getattr(module, "generation_config", None) for module in model.modules())
    own = next((each for each in found if isinstance(each, GenerationConfig)), None)
    if own is not None:
        config.update(**own.to_dict(), defaults_only=True)
    return config


def check_batch(batch: Mapping[str, Any], device: torch.device, *, main_input: str = "input_ids") -> None:
    """Refuse what cannot be measured as one request.

    Args:
        batch: as ``generate()`` takes it.
        device: the model's.
        main_input: what the model takes if the batch holds no ``input_ids``: pixels in some models.

    Raises:
        DataError: no ``input_ids``, no tensors, more than one request, a video, or a tensor that is not on ``device``.
    """
    if not hasattr(batch, "keys"):
        raise DataError(f"the batch is a {type(batch).__name__}; pass one request as the processor makes it, by name")
    video = next((key for key in VIDEO_KEYS if batch.get(key) is not None), None)
    if video:
        raise DataError(f"the batch holds a video ({video}); only images and text can be measured, leave the video out")
    ids = batch.get("input_ids")
    first = next((batch[key] for key in ("input_ids", "inputs_embeds", main_input) if batch.get(key) is not None), None)
    if first is not None and not isinstance(first, Tensor):
        raise DataError(f"the batch holds a {type(first).__name__}, no tensors; give the processor return_tensors='pt'")
    if first is None or (ids is not None and ids.ndim != 2):
        raise DataError("the batch needs input_ids of shape [1, tokens], as the processor makes them")
    if first.shape[0] != 1:
        raise DataError(
            f"batch size {first.shape[0]} is not supported: requests run one at a time, pass input_ids [1, T]"
        )
    elsewhere = [key for key, value in batch.items() if isinstance(value, Tensor) and value.device != device]
    if elsewhere:
        raise DataError(
            f"{', '.join(elsewhere)} on {batch[elsewhere[0]].device}, the model on {device}; move the batch there "
            "first, so that the copy is not part of the measurement"
        )


def check_answers(config: GenerationConfig) -> None:
    """Refuse a request for several answers.

    Raises:
        DataError: ``num_return_sequences`` is not 1.
    """
    if (config.num_return_sequences or 1) != 1:
        raise DataError(f"num_return_sequences = {config.num_return_sequences}: a request has one answer, use 1")
