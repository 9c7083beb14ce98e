"""Immutable facts: what ran, what it cost, what it answered. No torch in here.

Every number carries its unit in its name; every timing carries its source. The definitions of the stages stand in
docs/definitions.md.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, cast, get_args

from chronostat.errors import BudgetError, KnobError, MeasurementError, UnlikeConditions

Source = Literal["measured", "total_only", "estimated"]
LatencyMetric = Literal["prefill_ms", "llm_prefill_ms", "ttft_ms", "total_ms", "request_ms"]
LATENCY_METRICS: tuple[LatencyMetric, ...] = get_args(LatencyMetric)
BudgetKind = Literal["mean", "deadline"]
Verdict = Literal["faster", "slower", "same", "undecided", "invalid"]
Phase = Literal["warmup", "calibrate", "train", "select", "test", "rank"]
KnobValue = int | float | tuple[int, ...]


@dataclass(frozen=True, init=False)
class Setting(Mapping[str, KnobValue]):
    """One value for each knob, by name; hashable. A knob that is not named stays as the model was built.

    ``str(setting)`` and ``Setting.parse`` are inverse: ``"vision_tokens=80 moe_topk=1 block_skip=2,3"``, with
    ``vision_tokens=0.25`` for a share, ``block_skip=-`` for the empty tuple and ``"full"`` for the setting without
    knobs.
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
            KnobError: a word is not of the form ``knob=value``, or a knob is named twice.
        """
        if text.strip() in {"", "full"}:
            return cls()
        pairs = [_parse_pair(word) for word in text.split()]
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                raise KnobError(f"{text!r} names {name} {count} times; name each knob once")
        return cls(dict(pairs))


def knob_value(plain: float | list[int]) -> KnobValue:
    """The value that JSON has made a list of, where it is a tuple."""
    return tuple(plain) if isinstance(plain, list) else plain


def _value_text(value: KnobValue) -> str:
    if not isinstance(value, tuple):
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
        number = text if equals and name else ""
        return name, float(number) if set(".e") & set(number) else int(number)
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


_ONLY_TOLD = frozenset({"affinity", "commit"})


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Where and how latencies were measured: what must be equal for two of them to be compared.

    ``affinity`` and ``commit`` are told where they differ, but refuse nothing: they rarely change a latency. A field
    that was not recorded has a value that no recorded one has, so it refuses.

    Attributes:
        cores: CPUs that the process may run on.
        gpu: serial identity of the card, since cards of one type differ; ``none`` on a CPU.
        max_sm_clock_mhz: the highest clock of the card; None: on a CPU, or not told.
        application_sm_clock_mhz: the clock that it was set to.
        persistence: the driver stays loaded while nothing runs.
        mig: the card is divided.
        governor: of the CPU's frequency; ``unknown`` in most virtual machines.
        flush_denormals: numbers near 0 count as 0, which is faster and can change answers.
        compiled: a module of the model runs a compiled graph.
        cache: ``cache_implementation`` of the model's generation configuration; ``default`` where it names none.
        python: version of the interpreter, whose speed counts in every decode step.
        affinity: the CPUs, by number.
        commit: of chronostat; its version where it was installed without one.
    """

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
    gpu: str = "not recorded"
    max_sm_clock_mhz: int | None = None
    application_sm_clock_mhz: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    governor: str = "not recorded"
    flush_denormals: bool | None = None
    compiled: bool | None = None
    cache: str = "not recorded"
    python: str = "not recorded"
    affinity: str = "not recorded"
    commit: str = "not recorded"

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of SHA-256 over all fields: what every stored execution carries."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Conditions":
        """Read what ``asdict`` wrote; fields that an older version did not record stay unrecorded.

        Raises:
            UnlikeConditions: it holds fields that this version does not know.
        """
        unknown = sorted(data.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise UnlikeConditions(
                f"the conditions hold {', '.join(unknown)}, which this version of chronostat cannot compare; read them "
                "with the version that wrote them"
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise UnlikeConditions(f"the conditions are incomplete ({error}); measure anew") from None

    def differences(self, other: "Conditions") -> tuple[list[str], list[str]]:
        """Fields that refuse a comparison, and fields that are only told, as ``name: mine != theirs``."""
        mine, theirs = asdict(self), asdict(other)
        unequal = [name for name in mine if mine[name] != theirs[name]]
        texts = {name: f"{name}: {mine[name]} != {theirs[name]}" for name in unequal}
        return [texts[n] for n in unequal if n not in _ONLY_TOLD], [texts[n] for n in unequal if n in _ONLY_TOLD]

    def require_like(self, other: "Conditions") -> None:
        """Accept conditions under which latencies can be compared.

        Raises:
            UnlikeConditions: names each field that differs.
        """
        differing, _ = self.differences(other)
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
        image_tokens: image placeholders counted in ``input_ids``; where tiles are read by cross-attention, the
            positions it reads; None where the model names no such token.
        disturbed: what else happened on the machine meanwhile that makes the latency doubtful; None: nothing was seen.
        conditions: fingerprint of the ``Conditions`` it ran under; None outside of a run.
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
class Estimate:
    """A point with its 95 % interval."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The executions of several settings on one sample, in the order they ran.

    Attributes:
        index: position of the trial in its phase.
        draws: for each draw of the group, the position of its execution; equal draws share one.
        anchor: position of the execution of ``full`` that tracks drift, if this trial had one.
        budget: the budget under which the group was drawn, if a learner drew it.
        started_s: seconds since the run began.
        drift: latency of ``full`` then, relative to the calibration, from the anchors before this trial; None before
            the calibration has ended.
    """

    phase: Phase
    index: int
    sample_id: str
    executions: tuple[Execution, ...]
    draws: tuple[int, ...] = ()
    anchor: int | None = None
    budget: Budget | None = None
    started_s: float = 0.0
    drift: Estimate | None = None


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
class Comparison:
    """One latency of one arm against the same latency of the common partner.

    Attributes:
        metric: the latency's name, ``prefill_ms`` or another.
        ratio: arm / partner, dimensionless; an interval of 0 to infinity says that there are too few pairs for one. The
            point is that of all pairs; the interval, which earlier looks narrow, can end beside it.
        verdict: what the interval says; once given it stays.
        pairs: repeats of the arm that had a partner's repeat beside them and were used.
        margin: the arm is ``same`` where the whole interval lies within a factor of 1 + margin of 1.
        left_out: how many repeats of the arm were left out, by reason.
        flags: what a reader has to know, in words: why it is undecided or invalid, what was left out.
    """

    metric: str
    ratio: Estimate
    verdict: Verdict
    pairs: int
    margin: float
    left_out: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def plain(value: Any) -> Any:  # noqa: ANN401 - any part of a record
    """A record, or what ``asdict`` makes of one, for JSON: that has neither NaN nor infinity, so these become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
