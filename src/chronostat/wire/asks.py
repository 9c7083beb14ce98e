"""One request as the worker is given it, and what it comes to."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from chronostat.records import BudgetKind, Execution, LatencyMetric
from chronostat.records.messages import Turn

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class AskedBudget:
    """What a caller will wait.

    Attributes:
        ms: from the receipt of the request to where the metric ends.
        kind: ``deadline``: this request; ``mean``: on average over requests.
        strict: refuse what cannot be kept, in place of serving it with the fastest setting.
    """

    ms: float
    kind: BudgetKind = "deadline"
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float
    top_p: float


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, checked and not decoded.

    Attributes:
        received_ns: when its first byte was read, by the server's clock.
        messages: as they were sent, JSON; None unless they are stored.
        images: files of pictures, numbered as the turns place them.
        new_tokens: longest answer; None: as the server answers by itself.
        least_tokens: shortest answer, ends of sequence before it left out.
        sampling: None: as the server decodes by itself.
        seed: of what is drawn; None: the server draws one.
        stop: texts that end the answer and are no part of it.
    """

    id: str
    received_ns: int
    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()
    new_tokens: int | None = None
    least_tokens: int = 0
    sampling: Sampling | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    budget: AskedBudget | None = None
    messages: str | None = None


class Piece(NamedTuple):
    """Text as it comes, with the tokens of the prompt and of the answer so far."""

    text: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What came out.

    Attributes:
        queue_ms: from receipt to the request's turn.
        image_ms: decoding its pictures.
        wall_ms: choosing, preprocessing and ``generate()``, with all that is set up around them.
        charged_ms: from receipt to where the metric ends: what a budget is compared with.
        kept: whether that is within a deadline; None: there was none.
        meetable: whether a setting was known to keep the budget when the request's turn came; None: no budget, or
            nothing to choose.
        full_ms: latency of ``full`` that the choice was made by; None: nothing was chosen.
        forecast_ms: what was forecast at the calibration, by the metric; None: nothing was.
        forced: its length was asked for, by a least number of tokens: no forecast is of that.
    """

    text: str
    finish: Finish
    execution: Execution
    metric: LatencyMetric
    queue_ms: float
    image_ms: float
    wall_ms: float
    charged_ms: float
    kept: bool | None
    meetable: bool | None
    full_ms: float | None
    forecast_ms: float | None = None
    forced: bool = False

    @property
    def first_token_ms(self) -> float | None:
        """From the request's turn to its first token; None where the stages were not seen."""
        timing = self.execution.timing
        if timing is None or timing.ttft_ms is None:
            return None
        return self.image_ms + self.wall_ms - timing.total_ms + timing.ttft_ms
