"""What ``validation.json`` holds: how the frozen controller did on samples that it had not seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from chronostat.errors import StoreError
from chronostat.records import Comparison, Conditions, Estimate, LatencyMetric, Number, PolicyScore, Source

AccuracyVerdict = Literal["better", "worse", "same", "undecided", "invalid"]


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """One policy under one budget on the questions of one kind.

    Attributes:
        budget: ``str(Budget)``, for example ``"mean 0.40"``.
        n: judged samples of this kind.
        setting_shares: for each setting that was used the share of these samples.
    """

    kind: str
    budget: str
    policy: str
    n: int
    accuracy: float
    setting_shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FixedScore:
    """One setting used for every sample; latency is the run's metric, in milliseconds."""

    setting: str
    n: int
    accuracy: Estimate
    mean_ms: Estimate
    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The fixed setting that a controller is compared with under a budget, chosen by everything that was measured.

    Attributes:
        expected: its quality by that evidence.
        shortfall: how far the choice may be off: expected quality of the truly best one less its own.
        learned: whether the controller looks at the request under this budget; else it plays what needs no looking.
        n: of an older version, which chose by the validation split alone: samples.
        validation_accuracy: likewise.
    """

    setting: str
    expected: float | None = None
    shortfall: float | None = None
    learned: bool | None = None
    n: int | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class KindsDiffer:
    """Permutation test of whether the controller's choice depends on the kind of question."""

    budget: str
    p_value: float
    most_chosen: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Executions that validation stored, but for those that failed before their call, and counted ``generate()``s."""

    executions: int
    generate_calls: int


@dataclass(frozen=True, kw_only=True)
class PolicyComparison:
    """The controller against one policy under one budget, paired by sample.

    Attributes:
        budget: ``str(Budget)``.
        policy: ``best fixed``, ``static mix``, ``full`` or one of ``validation.beside``.
        gain: accuracy of the controller less that of the policy on all judged samples, with the interval that the
            verdict is from; where there was more than one look, it is of the earlier ones too and can end beside that.
        accuracy: what that says of the controller.
        latency: the controller's latency / the policy's.
    """

    budget: str
    policy: str
    gain: Estimate
    accuracy: AccuracyVerdict
    latency: Comparison


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """``full`` twice on the same samples (A/A): what the machine makes of no difference at all.

    Attributes:
        comparison: later / earlier execution of the undisturbed pairs.
        spread: half of these pairs differ by more than this share; NaN without any.
        asked: pairs that were executed.
        left_out: pairs that were not used, by reason.
    """

    comparison: Comparison
    spread: Number
    asked: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The judgement of one run.

    Attributes:
        scores: one for each budget and policy.
        fixed: every fixed setting that was measured on the judged samples.
        samples: judged samples.
        selection: by ``str(Budget)``, how the best fixed setting was found.
        comparisons: the verdicts, one for each budget and rival.
        noise: the noise floor; absent: it was not measured.
        stop: why judging ended after so many samples.
        metric: the latency that was compared; absent: the run's.
        source: where it came from; absent: the run's.
        conditions: under which it was measured; absent: the run's.
    """

    scores: tuple[PolicyScore, ...]
    samples: int
    fixed: tuple[FixedScore, ...] = ()
    by_kind: tuple[KindScore, ...] = ()
    selection: Mapping[str, Selected] = field(default_factory=dict)
    kinds_differ: KindsDiffer | None = None
    counted: Counted | None = None
    comparisons: tuple[PolicyComparison, ...] = ()
    noise: NoiseFloor | None = None
    stop: str | None = None
    metric: LatencyMetric | None = None
    source: Source | None = None
    conditions: Conditions | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``RunStore.write_json("validation.json", ...)``."""
        return _ADAPTER.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Validation":
        """Read what ``to_json`` gave.

        Raises:
            StoreError: a key is missing or a value is of the wrong kind; names it.
        """
        try:
            return _ADAPTER.validate_python(data)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            raise StoreError(
                f"validation.json: {key}: {problem['msg']}; it is damaged, or of another version of chronostat; "
                "judge anew with chronostat validate RUN --to DIR"
            ) from None


_ADAPTER = TypeAdapter(Validation)
