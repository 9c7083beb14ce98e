"""``measure_generate`` and ``measuring``: one real ``generate()`` call, measured; its own, or the user's."""

import copy
import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from threading import Lock, get_ident
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from chronostat.errors import ConfigError, MeasurementError
from chronostat.measure.arguments import Batch, Generative, check_batch, main_input_of
from chronostat.measure.call import Measured, call_measured, check_model, device_of, sole_measurement
from chronostat.measure.clock import Clock
from chronostat.measure.hooks import restorer
from chronostat.measure.stages import Waterfall
from chronostat.records import StageTiming

__all__ = [
    "Batch",
    "Measured",
    "Measuring",
    "Waterfall",
    "check_batch",
    "device_of",
    "measure_alone",
    "measure_generate",
    "measuring",
    "sole_measurement",
]

_ENTRANCES = ("generate", "generate_from_batch")  # the second is that of the first Molmo generation


def measure_generate(
    model: PreTrainedModel,
    batch: Batch,
    *,
    max_new_tokens: int,
    generation_config: GenerationConfig | None = None,
    clock: Clock | None = None,
    time_limit_s: float | None = None,
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
        time_limit_s: a generation that takes longer is ended at its next hook or token; None: no limit.

    Raises:
        ConfigError: ``max_new_tokens`` is no whole number above 0.
        DataError: the batch has no ``input_ids``, holds more than one request, a video, or tensors of another device.
        ModelError: the model cannot generate, not one token after the other (block diffusion), was compiled, or lies on
            several devices, or its decoder blocks were not found; name them with ``anatomy_of(model, layout)``.
        MeasurementError: another measurement is running on this device, nothing of the model ran, no token came out, or
            the clock contradicts that of the system.
        GenerationTimeout: the generation took longer than ``time_limit_s``.
        Exception: whatever the model raises; nothing stays installed.
    """
    device = device_of(model)
    with sole_measurement(device):
        return measure_alone(
            model,
            batch,
            device,
            max_new_tokens=max_new_tokens,
            generation_config=generation_config,
            clock=clock,
            time_limit_s=time_limit_s,
        )


def measure_alone(
    model: PreTrainedModel,
    batch: Batch,
    device: torch.device,
    *,
    max_new_tokens: int,
    generation_config: GenerationConfig | None,
    clock: Clock | None,
    time_limit_s: float | None = None,
    criteria: Sequence[StoppingCriteria] = (),
) -> Measured:
    """``measure_generate`` for a caller that holds ``sole_measurement`` of the model's device itself.

    ``criteria`` are asked at every token beside the model's own.
    """
    check_model(model)
    check_batch(batch, device, main_input=main_input_of(model))
    function = cast("Generative", model).generate
    arguments: dict[str, Any] = {**batch, **_length(max_new_tokens, generation_config)}
    if criteria:
        arguments["stopping_criteria"] = StoppingCriteriaList(criteria)
    return call_measured(model, device, function, (), arguments, clock=clock, time_limit_s=time_limit_s)[1]


class Measuring:
    """The one ``generate()`` call inside a ``with measuring(model)``."""

    def __init__(self, one: "_OneCall") -> None:
        self._one = one

    @property
    def result(self) -> Measured:
        """Everything that was measured.

        Raises:
            MeasurementError: no call has ended yet, or it raised.
        """
        return self._one.result()

    @property
    def timing(self) -> StageTiming:
        """The stages of the call."""
        return self.result.timing

    @property
    def output_ids(self) -> tuple[int, ...]:
        """The new tokens."""
        return self.result.output_ids

    @property
    def sequences(self) -> Tensor:
        """The ids that ``generate()`` returned."""
        return self.result.sequences

    @property
    def disturbed(self) -> str | None:
        """Why the numbers are doubtful; None: nothing was seen."""
        return self.result.disturbed

    @property
    def compiled(self) -> bool:
        """Whether ``generate()`` compiled its decode step."""
        return self.result.compiled


class _OneCall:
    """Lets one call through, and measures it."""

    def __init__(self) -> None:
        self.measured: Measured | None = None
        self._lock = Lock()
        self._caller: int | None = None
        self._ended = False
        self._raised: BaseException | None = None

    def result(self) -> Measured:
        """What the call gave."""
        if self._raised is not None:
            raise MeasurementError(
                f"nothing has been measured: the generate() inside the with raised {type(self._raised).__name__}; call "
                "it again inside another with measuring(model)"
            ) from self._raised
        if self.measured is None:
            raise MeasurementError("nothing has been measured yet: call model.generate(...) inside the with, then read")
        return self.measured

    def run(self, measured: Callable[[], tuple[Any, Measured]], plain: Callable[[], Any]) -> Any:  # noqa: ANN401
        """What ``generate()`` returns."""
        with self._lock:
            first, nested = self._caller is None, self._caller == get_ident() and not self._ended
            self._caller = self._caller or get_ident()
        if nested:
            return plain()  # one entrance of the model leads to another
        if not first:
            raise MeasurementError(
                "a second generate() inside one with measuring(model): each with measures one call, open another one"
            )
        try:
            output, self.measured = measured()
        except BaseException as error:
            self._raised = error
            raise
        finally:
            self._ended = True
        return output

    def require_ended(self) -> None:
        """Accept one call that has ended."""
        if self._caller is None:
            raise MeasurementError(
                "no generate() was called inside with measuring(model): call model.generate(...) of this very object"
            )
        if not self._ended:
            raise MeasurementError(
                "generate() was still running in another thread when the with ended: join that thread inside the with"
            )


@contextmanager
def measuring(
    model: PreTrainedModel, *, clock: Clock | None = None, time_limit_s: float | None = None
) -> Generator[Measuring]:
    """Measure the one ``generate()`` call that you make inside the ``with``, with whatever arguments it takes.

    The call returns what it would return without this, and raises what it would raise. Your own stopping criteria are
    asked as before; one that takes a mark per token is added to them. Afterwards nothing is left on the model.

    Args:
        model: any model that generates with transformers, on one device.
        clock: the device's own clock if absent.
        time_limit_s: a generation that takes longer is ended at its next hook or token; None: no limit.

    Yields:
        What was measured, once the call has returned.

    Raises:
        ModelError: the model cannot generate, not one token after the other, was compiled, or lies on several devices.
        MeasurementError: another measurement is running on this device; or no call was made inside, or a second one, or
            one that has not ended; or the call is one that ``measure_generate`` refuses.
        DataError: from the call, where its arguments are not one request on the model's device.
    """
    check_model(model)
    device = device_of(model)
    with sole_measurement(device):
        one = _OneCall()
        with ExitStack() as undo:
            for name in _ENTRANCES:
                if hasattr(model, name):
                    original = getattr(model, name)
                    undo.callback(restorer(model, name))
                    setattr(model, name, _measured_once(one, model, device, original, clock, time_limit_s))
            yield Measuring(one)
        one.require_ended()


def _measured_once(
    one: _OneCall,
    model: PreTrainedModel,
    device: torch.device,
    original: Callable[..., Any],
    clock: Clock | None,
    time_limit_s: float | None,
) -> Callable[..., Any]:
    @functools.wraps(original)
    def entrance(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever generate() takes and returns
        return one.run(
            lambda: call_measured(model, device, original, args, kwargs, clock=clock, time_limit_s=time_limit_s),
            lambda: original(*args, **kwargs),
        )

    return entrance


def _length(max_new_tokens: int, generation_config: GenerationConfig | None) -> dict[str, Any]:
    """The arguments of ``generate()`` that say how long; it takes either a configuration or single values.

    Raises:
        ConfigError: no whole number above 0.
    """
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens = {max_new_tokens!r}: give a whole number of at least 1")
    if generation_config is None:
        return {"max_new_tokens": max_new_tokens}
    config = copy.deepcopy(generation_config)
    config.max_new_tokens = max_new_tokens
    return {"generation_config": config}
