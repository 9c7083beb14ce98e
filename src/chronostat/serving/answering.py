"""One request answered by the model: its pictures decoded, its setting chosen, one measured ``generate()``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, cycle
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import GenerationConfig

from chronostat.data.images import load_image
from chronostat.data.samples import Sample
from chronostat.errors import ChronostatError, DataError, ExecutionError, MeasurementError
from chronostat.execution.execute import SampleRequest, execute
from chronostat.measure.clock import Clock
from chronostat.measure.flow import parts_followed
from chronostat.models.load import Vlm
from chronostat.records import Execution, LatencyMetric, Setting, Source
from chronostat.records.messages import Turn
from chronostat.serving.choosing import Chooser
from chronostat.serving.text import AnswerText
from chronostat.wire.asks import Answered, Ask, AskedBudget, Finish, Piece, Sampling
from chronostat.wire.errors import Refused, bad
from chronostat.wire.reading import too_long

_SEEDS = np.random.default_rng()
_WARM_SHAPES = ((64, 64), (448, 448), (600, 900), (1000, 400))  # height and width of pictures that warm up
_WARM_TOKENS = 2
_TOKENS_OF_A_BYTE = 2  # at most, beginnings of texts and what a tokenizer normalises included


class Answerer(Protocol):
    """Answers requests, one at a time."""

    @property
    def metric(self) -> LatencyMetric:
        """How far a budget reaches."""
        ...

    def require_meetable(self, budget: AskedBudget) -> None:
        """Refuse what nothing can keep, before it waits.

        Raises:
            Refused: it is strict, and cannot be kept.
        """
        ...

    def answer(self, ask: Ask, told: Callable[[Piece], None], gone: Callable[[], bool]) -> Answered:
        """Answer one request.

        Args:
            ask: the request.
            told: called with each piece of text.
            gone: whether nobody waits any more.

        Raises:
            Refused: it cannot be answered as asked.
            Exception: whatever the model raises.
        """
        ...


@dataclass(kw_only=True)
class ModelAnswerer:
    """Answers by a model.

    Attributes:
        settings: all that may be chosen; each is warmed up.
        new_tokens: longest answer of a request that says nothing.
        context_tokens: that the model's context holds.
        sample: the model samples answers of requests that say nothing, as its generation_config says.
        answered: told of each request that was answered to its end, with what was executed.
        source: where latencies come from, as the warm-up has seen; None: not warm yet.
    """

    vlm: Vlm
    chooser: Chooser
    settings: Sequence[Setting]
    clock: Clock
    new_tokens: int
    context_tokens: int
    sample: bool = False
    answered: Callable[[SampleRequest, Answered], None] = field(default=lambda _request, _answered: None)
    source: Source | None = field(default=None, init=False)

    @property
    def metric(self) -> LatencyMetric:
        """Of the chooser."""
        return self.chooser.metric

    def require_meetable(self, budget: AskedBudget) -> None:
        """As the chooser says."""
        self.chooser.require_meetable(budget)

    def answer(self, ask: Ask, told: Callable[[Piece], None], gone: Callable[[], bool]) -> Answered:
        """See ``Answerer``."""
        turn_ns = self.clock.host_ns()
        queue_ms = (turn_ns - ask.received_ns) / 1e6
        self._require_room(ask)
        request = self._request(ask)
        image_ms = self.clock.host_ms_since(turn_ns)
        start_ns = self.clock.host_ns()
        spent_ms = queue_ms + image_ms
        chosen = self.chooser.choose(request, ask.budget, spent_ms, self.clock)
        text = AnswerText(self.vlm.processor, ask.stop, told, gone)
        execution = self._execute(ask, request, chosen.setting, chosen.controller_ms, text)
        text.end()
        wall_ms = self.clock.host_ms_since(start_ns)
        reached_ms = self._reached_ms(execution, wall_ms)
        charged_ms = spent_ms + reached_ms
        answered = Answered(
            text=text.text,
            finish=self._finish(ask, execution, text),
            execution=execution,
            metric=self.metric,
            queue_ms=queue_ms,
            image_ms=image_ms,
            wall_ms=wall_ms,
            charged_ms=charged_ms,
            kept=_kept(ask.budget, charged_ms),
            meetable=chosen.meetable,
            full_ms=chosen.full_ms,
            forecast_ms=chosen.forecast_ms,
            forced=ask.least_tokens > 0,
        )
        self._learn(request, execution, reached_ms)
        # one that was cut short keeps no deadline, and one that is late already has broken it
        if not gone() or answered.kept is False:
            self.answered(request, answered)
        return answered

    def warm_up(self, ended: Callable[[], bool]) -> None:
        """Every setting once, on pictures of several sizes in turn and on text alone; parts are found on the first.

        Args:
            ended: asked before each execution once the source is known; the rest is left out.

        Raises:
            MeasurementError: the metric cannot be seen on this model.
        """
        with parts_followed(self.vlm.model):
            self.warm(Setting())
        timing = self.warm(Setting()).timing
        assert timing is not None, "execute() raises where it cannot measure"
        self.source = timing.source
        if self.metric == "ttft_ms" and timing.ttft_ms is None:
            raise MeasurementError(
                f"budgets reach to the first token, which cannot be seen on this model ({timing.unseen}); name the "
                "parts with --set model.layout.PART=PATH, or serve a controller whose metric is request_ms"
            )
        of_full = ((Setting(), shape) for shape in (*_WARM_SHAPES, None))
        for setting, shape in chain(of_full, zip(self.settings, cycle(_WARM_SHAPES), strict=False)):
            if ended():
                return
            self.warm(setting, shape)

    def warm(self, setting: Setting, shape: tuple[int, int] | None = _WARM_SHAPES[0]) -> Execution:
        """Answer a made-up request.

        Args:
            setting: under which.
            shape: height and width of its picture in pixels; None: text alone.
        """
        turn = Turn(role="user", parts=("Warm up.",) if shape is None else (0, "Warm up."))
        images = () if shape is None else (_noise(shape),)
        ask = Ask(id="warm-up", received_ns=0, turns=(turn,), images=images, new_tokens=_WARM_TOKENS)
        request = self._request(ask)
        text = AnswerText(self.vlm.processor, (), lambda _: None, lambda: False)
        start_ns = self.clock.host_ns()
        execution = self._execute(ask, request, setting, 0.0, text)
        if self.source is not None:  # the first ones are followed, and pay for what later ones find ready
            self._learn(request, execution, self._reached_ms(execution, self.clock.host_ms_since(start_ns)))
        return execution

    def _request(self, ask: Ask) -> SampleRequest:
        images = [load_image(content, f"number {number} of the request") for number, content in enumerate(ask.images)]
        return SampleRequest(sample=_sample(ask), images=images, processor=self.vlm.processor, quality=None)

    def _execute(
        self, ask: Ask, request: SampleRequest, setting: Setting, controller_ms: float, text: AnswerText
    ) -> Execution:
        sampled = self.sample if ask.sampling is None else ask.sampling.temperature > 0
        seed = int(_SEEDS.integers(2**48)) if ask.seed is None else ask.seed
        return execute(
            self.vlm.model,
            request,
            setting=setting,
            max_new_tokens=ask.new_tokens or self.new_tokens,
            generation_config=_config(ask.sampling if sampled else None, ask.least_tokens),
            controller_ms=controller_ms,
            clock=self.clock,
            sampling_seed=seed if sampled else None,
            criteria=[text],
        )

    def _require_room(self, ask: Ask) -> None:
        """Accept what fits the context as far as text goes; what pictures add depends on the setting.

        Raises:
            Refused: it does not.
        """
        new = ask.new_tokens or 1
        if sum(len(turn.text.encode()) for turn in ask.turns) * _TOKENS_OF_A_BYTE + new <= self.context_tokens:
            return  # without counting tokens, which takes time
        tokenizer: Any = getattr(self.vlm.processor, "tokenizer")  # noqa: B009 - the base class does not declare it
        text = sum(len(tokenizer(turn.text, add_special_tokens=False)["input_ids"]) for turn in ask.turns)
        if text + new > self.context_tokens:
            raise too_long(f"{text:,} tokens of text, and {new:,} of the answer", self.context_tokens)

    def _reached_ms(self, execution: Execution, wall_ms: float) -> float:
        """Of the wall time of choosing and executing that up to where the metric ends.

        Raises:
            MeasurementError: the first token was not seen.
        """
        timing = execution.timing
        assert timing is not None, "execute() raises where it cannot measure"
        reached_ms = wall_ms
        if self.metric == "ttft_ms":
            reached_ms += execution.latency_ms("ttft_ms") - timing.total_ms
        return reached_ms

    def _learn(self, request: SampleRequest, execution: Execution, reached_ms: float) -> None:
        """What a caller waited beside what the metric counts."""
        self.chooser.learn(request, execution, reached_ms - execution.charged_ms(self.metric))

    def _finish(self, ask: Ask, execution: Execution, text: AnswerText) -> Finish:
        """Whether the answer ended by itself."""
        full_length = len(execution.output_ids) >= (ask.new_tokens or self.new_tokens)
        ended = text.stopped or execution.output_ids[-1] in _ends(self.vlm.model)
        return "length" if full_length and not ended else "stop"


def _noise(shape: tuple[int, int]) -> bytes:
    """The file of a picture."""
    file = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="BMP")
    return file.getvalue()


def explained(error: Exception) -> Refused:
    """What a client is told where answering has raised."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, DataError):
        return bad("messages", str(error))
    if isinstance(error, ChronostatError) and not isinstance(error, ExecutionError):
        return Refused(500, f"the server cannot answer: {error}", code="cannot_answer")
    said = " ".join(str(error).split())[:300]
    return Refused(
        500,
        f"the model raised {type(error).__name__} ({said}); the next request is answered again, this one may need a "
        "shorter prompt or smaller pictures",
        code="model_error",
    )


def _sample(ask: Ask) -> Sample:
    """What the controller and the processor see; one turn with the pictures first is no conversation."""
    said = [turn.text for turn in ask.turns if turn.role == "user"]
    pictures = tuple(range(len(ask.images)))
    first = ask.turns[0]
    alone = len(ask.turns) == 1 and first.parts == (*pictures, first.text)
    return Sample(
        id=ask.id,
        split="test",
        prompt="\n".join(said),
        references=(),
        load_images=lambda: (),
        turns=() if alone else ask.turns,
    )


def _config(sampling: Sampling | None, least_tokens: int) -> GenerationConfig | None:
    values: dict[str, Any] = {"min_new_tokens": least_tokens} if least_tokens else {}
    if sampling is not None:
        values |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(**values) if values else None


def _ends(model: Any) -> Sequence[int]:  # noqa: ANN401 - any model that generates
    ends: int | Sequence[int] | None = getattr(model.generation_config, "eos_token_id", None)
    return () if ends is None else [ends] if isinstance(ends, int) else ends


def _kept(budget: AskedBudget | None, charged_ms: float) -> bool | None:
    """Of a deadline; one request neither keeps nor breaks a mean."""
    return None if budget is None or budget.kind == "mean" else charged_ms <= budget.ms
