"""What one ``generate()`` cost, stage by stage, and what it answered."""

from dataclasses import dataclass
from typing import Literal, get_args

from chronostat.errors import MeasurementError
from chronostat.records.settings import Setting

Source = Literal["measured", "total_only", "estimated"]
LatencyMetric = Literal["prefill_ms", "llm_prefill_ms", "ttft_ms", "total_ms", "request_ms"]
LATENCY_METRICS: tuple[LatencyMetric, ...] = get_args(LatencyMetric)
SERVED_METRICS: tuple[LatencyMetric, ...] = ("ttft_ms", "total_ms", "request_ms")  # end where a caller's wait does


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """The stages of one ``generate()`` call; a stage that was not seen, or does not exist here, is None.

    With source ``total_only`` everything but ``total_ms`` and the token counts is None and ``unseen`` says why.
    """

    source: Source
    total_ms: float
    new_tokens: int
    decode_steps: int
    ttft_ms: float | None = None
    prefill_ms: float | None = None
    vision_ms: float | None = None
    projector_ms: float | None = None
    llm_prefill_ms: float | None = None
    prefill_rest_ms: float | None = None
    decode_ms: float | None = None
    decode_ms_per_token: float | None = None
    other_ms: float | None = None
    unseen: str | None = None


NOT_CALLED = "generate() was not called"
"""Ends the reason of an execution that failed before its call: while knobs were applied or the sample was prepared."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One real ``generate()`` of one sample under one setting.

    Attributes:
        timing: the stages; None exactly when ``invalid`` says why the execution failed.
        quality: score of the answer in [0, 1]; None where there was nothing to score against.
        preprocess_ms: image and text to tensors on the device; None for a ready batch.
        controller_ms: what choosing the setting cost; 0 for a fixed setting.
        image_tokens: image placeholders counted in ``input_ids``; where tiles are read by cross-attention, the
            positions it reads; None where the model names no such token.
        disturbed: what else happened on the machine meanwhile that makes the latency doubtful; None: nothing was seen.
        conditions: fingerprint of the ``Conditions`` it ran under; None outside of a run.
        sampling_seed: what its tokens were drawn from; None: each was the most probable one (greedy).
    """

    sample_id: str
    split: str
    setting: Setting
    timing: StageTiming | None
    invalid: str | None = None
    kind: str | None = None
    output_ids: tuple[int, ...] = ()
    answer: str | None = None
    quality: float | None = None
    preprocess_ms: float | None = None
    controller_ms: float = 0.0
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    disturbed: str | None = None
    conditions: str | None = None
    sampling_seed: int | None = None

    def __post_init__(self) -> None:
        if (self.timing is None) == (self.invalid is None):
            raise MeasurementError("an execution has either a timing or a reason why it is invalid, never both")

    @property
    def called(self) -> bool:
        """Whether ``generate()`` was called."""
        return not (self.invalid or "").endswith(NOT_CALLED)

    @property
    def request_ms(self) -> float | None:
        """What a caller waits: preprocessing, controller and ``generate()``; None for a failed execution."""
        if self.timing is None:
            return None
        return self.charged_ms("request_ms")

    def latency_ms(self, metric: LatencyMetric) -> float:
        """The latency under one definition without the controller's own time, also of ``request_ms``.

        Raises:
            MeasurementError: the execution failed, or this stage was not seen.
        """
        if self.timing is None:
            raise MeasurementError(f"execution of {self.sample_id} failed ({self.invalid}); it has no {metric}")
        if metric == "request_ms":
            return (self.preprocess_ms or 0.0) + self.timing.total_ms
        value = getattr(self.timing, metric)
        if value is None:
            raise MeasurementError(
                f"{metric} of {self.sample_id} was not seen ({self.timing.unseen}); this run's source is "
                f"{self.timing.source}, use latency_metric = 'total_ms'"
            )
        return value

    def charged_ms(self, metric: LatencyMetric) -> float:
        """Latency plus ``controller_ms``: what a budget is compared with."""
        return self.latency_ms(metric) + self.controller_ms
