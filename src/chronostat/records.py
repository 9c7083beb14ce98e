"""Immutable facts: what ran, what it cost, what it answered. No torch in here.

Every number carries its unit in its name; every timing carries its source. The definitions of the stages stand in
docs/definitions.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from chronostat.errors import BudgetError, KnobError, MeasurementError, UnlikeConditions

Source = Literal["measured", "total_only", "estimated"]
LatencyMetric = Literal["prefill_ms", "llm_prefill_ms", "ttft_ms", "total_ms", "request_ms"]
LATENCY_METRICS: tuple[LatencyMetric, ...] = get_args(LatencyMetric)
BudgetKind = Literal["mean", "deadline"]
Phase = Literal["warmup", "calibrate", "train", "select", "test"]
KnobValue = int | tuple[int, ...]


@dataclass(frozen=True, init=False)
class Setting(Mapping[str, KnobValue]):
    """One value for each knob, by name; hashable. A knob that is not named stays as the model was built.

    ``str(setting)`` and ``Setting.parse`` are inverse: ``"vision_tokens=80 moe_topk=1 block_skip=2,3"``, with
    ``block_skip=-`` for the empty tuple and ``"full"`` for the setting that names no knob.
    """

    pairs: tuple[tuple[str, KnobValue], ...]

    def __init__(self, values: Mapping[str, KnobValue] | None = None, /, **knobs: KnobValue) -> None:
        merged = {**(values or {}), **knobs}
        object.__setattr__(self, "pairs", tuple(merged.items()))

    def __getitem__(self, knob: str) -> KnobValue:
        for name, value in self.pairs:
            if name == knob:
                return value
        raise KeyError(knob)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setting) and dict(self.pairs) == dict(other.pairs)

    def __hash__(self) -> int:
        return hash(frozenset(self.pairs))

    def __str__(self) -> str:
        return " ".join(f"{name}={_value_text(value)}" for name, value in self.pairs) or "full"

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Read what ``str`` wrote.

        Raises:
            KnobError: a word is not of the form ``knob=value``.
        """
        if text.strip() in {"", "full"}:
            return cls()
        return cls(dict(_parse_pair(word) for word in text.split()))


def _value_text(value: KnobValue) -> str:
    if isinstance(value, int):
        return str(value)
    if not value:
        return "-"
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "")


def _parse_pair(word: str) -> tuple[str, KnobValue]:
    name, equals, text = word.partition("=")
    try:
        if text == "-":
            return name, ()
        if "," in text:
            return name, tuple(int(part) for part in text.rstrip(",").split(","))
        return name, int(text if equals and name else "")
    except ValueError:
        raise KnobError(
            f"cannot read {word!r} as a knob setting; write knob=value, for example vision_tokens=80, moe_topk=1 "
            "or block_skip=2,3"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A latency limit as a fraction of the latency of ``full``.

    Attributes:
        kind: ``mean`` must hold on average, ``deadline`` for 95 % of the requests.
        fraction: limit / median latency of the anchors, dimensionless.
    """

    kind: BudgetKind
    fraction: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind) or not 0 < self.fraction < float("inf"):
            raise BudgetError(
                f"budget {self.kind!r} {self.fraction!r}: the kind is mean or deadline, the fraction of full a "
                "positive number, for example mean 0.4"
            )

    def ms(self, full_ms: float) -> float:
        """The limit in milliseconds where the anchors' median is ``full_ms``."""
        return self.fraction * full_ms

    def __str__(self) -> str:
        return f"{self.kind} {self.fraction:.2f}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What must be equal for two latencies to be compared."""

    machine: str
    cpu: str
    cores: int
    device: str
    driver: str
    threads: int
    torch: str
    transformers: str
    dtype: str
    attention: str

    def require_like(self, other: "Conditions") -> None:
        """Accept equal conditions.

        Raises:
            UnlikeConditions: names each field that differs.
        """
        mine, theirs = asdict(self), asdict(other)
        differing = [f"{name}: {mine[name]} != {theirs[name]}" for name in mine if mine[name] != theirs[name]]
        if differing:
            raise UnlikeConditions(f"measured under unlike conditions: {'; '.join(differing)}")


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


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One real ``generate()`` of one sample under one setting.

    Attributes:
        timing: the stages; None exactly when ``invalid`` says why the execution failed.
        quality: score of the answer in [0, 1]; None where there was nothing to score against.
        preprocess_ms: image and text to tensors on the device; None for a ready batch.
        controller_ms: what choosing the setting cost; 0 for a fixed setting.
        image_tokens: image placeholders counted in ``input_ids``; None where the model names no such token.
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

    def __post_init__(self) -> None:
        if (self.timing is None) == (self.invalid is None):
            raise MeasurementError("an execution has either a timing or a reason why it is invalid, never both")

    @property
    def request_ms(self) -> float | None:
        """What a caller waits: preprocessing, controller and ``generate()``; None for a failed execution."""
        if self.timing is None:
            return None
        return (self.preprocess_ms or 0.0) + self.controller_ms + self.timing.total_ms

    def latency_ms(self, metric: LatencyMetric) -> float:
        """The latency under one definition, without ``controller_ms`` (except ``request_ms``, which holds it).

        Raises:
            MeasurementError: the execution failed, or this stage was not seen.
        """
        if self.timing is None:
            raise MeasurementError(f"execution of {self.sample_id} failed ({self.invalid}); it has no {metric}")
        value = self.request_ms if metric == "request_ms" else getattr(self.timing, metric)
        if value is None:
            raise MeasurementError(
                f"{metric} of {self.sample_id} was not seen ({self.timing.unseen}); this run's source is "
                f"{self.timing.source}, use latency_metric = 'total_ms'"
            )
        return value

    def charged_ms(self, metric: LatencyMetric) -> float:
        """Latency plus ``controller_ms``, counted once: what a budget is compared with."""
        latency_ms = self.latency_ms(metric)
        return latency_ms if metric == "request_ms" else latency_ms + self.controller_ms


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The executions of several settings on one sample, in the order they ran.

    Attributes:
        index: position of the trial in its phase.
        draws: for each draw of the group, the position of its execution; equal draws share one.
        anchor: position of the execution of ``full`` that tracks drift, if this trial had one.
        budget: the budget under which the group was drawn, if a learner drew it.
        started_s: seconds since the run began.
    """

    phase: Phase
    index: int
    sample_id: str
    executions: tuple[Execution, ...]
    draws: tuple[int, ...] = ()
    anchor: int | None = None
    budget: Budget | None = None
    started_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The setting that the frozen controller chose for a sample under a budget."""

    sample_id: str
    split: str
    kind: str | None
    budget: Budget
    setting: Setting
    controller_ms: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One point of the learning curve.

    Attributes:
        executed_ms: milliseconds spent inside executions up to and including this step.
        metrics: what the learner reports of itself, by name.
    """

    index: int
    executed_ms: float
    quality: float
    latency_fraction: float
    budget: Budget
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A point with its 95 % interval."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PolicyScore:
    """How one policy did on the judged samples under one budget.

    Attributes:
        policy: ``controller``, ``best fixed``, ``static mix`` or ``full``.
        settings: the settings it used with their shares, most used first.
        share_within: share of requests within ``budget_ms``.
        gain: accuracy of the controller less that of this policy, paired by sample; None for the controller.
        kept: whether the budget was kept by its own rule (mean, or 95 % of requests).
    """

    policy: str
    budget: Budget
    budget_ms: float
    samples: int
    settings: tuple[tuple[str, float], ...]
    accuracy: Estimate
    mean_ms: Estimate
    p50_ms: float
    p95_ms: float
    share_within: Estimate
    gain: Estimate | None
    kept: bool
