"""What was found: a column of numbers for each arm, and the verdicts between them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from chronostat.compare.reasons import kind_of, that_count
from chronostat.compare.statistics import NoiseFloor, median_interval
from chronostat.errors import MeasurementError
from chronostat.machine.memory import peak_meaning
from chronostat.records import Comparison, Conditions, Estimate, Setting, Source, plain
from chronostat.studies.survey.arms import Arm, Shot

STAGES = (
    "preprocess_ms",
    "vision_ms",
    "projector_ms",
    "llm_prefill_ms",
    "prefill_rest_ms",
    "prefill_ms",
    "ttft_ms",
    "decode_ms",
    "decode_ms_per_token",
    "other_ms",
    "total_ms",
    "request_ms",
)
PERCENTILES = (50, 95, 99)
_GROWS_WITH_ANSWER = frozenset({"decode_ms", "other_ms", "total_ms", "request_ms"})
_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One arm's numbers.

    Attributes:
        shots: those that count, in the order they ran.
        left_out: those that ran beside them and do not count.
        peak_meaning: of the peak memory.
    """

    name: str
    model: str
    fingerprint: str
    setting: Setting
    conditions: Conditions
    shots: tuple[Shot, ...]
    left_out: tuple[Shot, ...]
    peak_meaning: str

    @property
    def source(self) -> Source:
        """Where the latencies come from."""
        return self.shots[0].timing.source

    @property
    def reasons(self) -> Mapping[str, int]:
        """How many do not count, by the kind of reason."""
        return Counter(kind_of(shot.timing.unseen or shot.execution.disturbed or "") for shot in self.left_out)

    @property
    def disturbed(self) -> int:
        """How many count although the machine disturbed them: too few were left without."""
        return sum(shot.execution.disturbed is not None for shot in self.shots)

    def stage(self, name: str) -> Estimate | None:
        """Median of a stage with its 95 % interval: over repeats, or over the medians of requests; None: no stage.

        Only requests that had the stage each time count: an answer of one token has no decode step.
        """
        groups = self._with_stage(name)
        if not groups:
            return None
        return median_interval(groups[0] if len(groups) == 1 else [float(np.median(group)) for group in groups])

    def _with_stage(self, name: str) -> list[list[float]]:
        """Milliseconds of each request that had the stage each time."""
        by_request: dict[int, list[float | None]] = {}
        for shot in self.shots:
            by_request.setdefault(shot.request, []).append(shot.stage_ms(name))
        seen = ([ms for ms in group if ms is not None] for group in by_request.values() if None not in group)
        return list(seen)

    def requests_without(self, name: str) -> int:
        """How many requests lacked a stage at least once; 0 where none ever had it."""
        if all(shot.stage_ms(name) is None for shot in self.shots):
            return 0
        return len({shot.request for shot in self.shots}) - len(self._with_stage(name))

    def percentile_ms(self, percent: int) -> float | None:
        """A percentile of ``request_ms`` over all executions; None where it would be the largest of too few.

        Where it falls between two executions it is their mean, as the median is (Hyndman and Fan 1996, definition 2).
        """
        if len(self.shots) * (100 - percent) < 100:
            return None
        return float(np.quantile(self.requests_ms, percent / 100, method="averaged_inverted_cdf"))

    @property
    def requests_ms(self) -> list[float]:
        """What a caller waited, by execution."""
        return [shot.request_ms for shot in self.shots]

    @property
    def peak_mib(self) -> float | None:
        """The most memory in use by any execution; None: unknown."""
        return max((shot.peak_mib for shot in self.shots if shot.peak_mib is not None), default=None)

    @property
    def compiled(self) -> bool:
        """Whether ``generate()`` compiled its decode step."""
        return any(shot.compiled for shot in self.shots)

    @property
    def typical(self) -> Shot:
        """The execution whose total lies in the middle: the one to look at."""
        return sorted(self.shots, key=lambda shot: shot.timing.total_ms)[(len(self.shots) - 1) // 2]

    def to_json(self) -> dict[str, Any]:
        """Plain data: medians, and every execution: first those that count, then the others."""
        return {
            "name": self.name,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "setting": str(self.setting),
            "source": self.source,
            "conditions": asdict(self.conditions),
            "compiled_decode": self.compiled,
            "stages": {name: plain(self.stage(name)) for name in STAGES},
            "request_percentiles_ms": {f"p{percent}": self.percentile_ms(percent) for percent in PERCENTILES},
            "peak_memory_mib": self.peak_mib,
            "peak_memory_is": self.peak_meaning,
            "left_out": dict(self.reasons),
            "disturbed": self.disturbed,
            "executions": [
                {"counts": counts, **_execution(shot)}
                for counts, shots in ((True, self.shots), (False, self.left_out))
                for shot in shots
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All arms.

    Attributes:
        requests: ids of the samples.
        metric: the latency that decided how long was measured, where arms were compared.
        comparisons: by latency, then by arm (1 and up), against arm 0; empty for one arm.
        noise_floor: by latency: what arm 0 differs by from itself.
        ended: why judging ended; None for one arm.
        interrupted: it was ended from outside, before all was measured that was planned.
    """

    columns: tuple[Column, ...]
    requests: tuple[str, ...]
    metric: str
    comparisons: Mapping[str, Mapping[int, Comparison]]
    noise_floor: Mapping[str, NoiseFloor]
    ended: str | None
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data: numbers that do not exist are null."""
        return {
            "requests": list(self.requests),
            "arms": [column.to_json() for column in self.columns],
            "metric": self.metric,
            "comparisons": [
                {"arm": self.columns[arm].name, "against": self.columns[0].name, **plain(asdict(comparison))}
                for by_arm in self.comparisons.values()
                for arm, comparison in by_arm.items()
            ],
            "noise_floor": {name: plain(asdict(floor)) for name, floor in self.noise_floor.items()},
            "ended": self.ended,
            "interrupted": self.interrupted,
        }


def column_of(arm: Arm, conditions: Conditions, shots: Sequence[Shot]) -> Column:
    """Leave out what does not count, and say why.

    Shots of which only the total was seen count if there are no others; disturbed ones if they are more than half.

    Raises:
        MeasurementError: there is none.
    """
    if not shots:
        raise MeasurementError(f"{arm.name} was never executed beyond its warm-up; allow more repeats")
    measured = [shot for shot in shots if shot.timing.source == "measured"]
    seen = measured or list(shots)
    calm = np.array([shot.execution.disturbed is None for shot in seen], dtype=np.bool_)
    used = list(compress(seen, that_count(calm).tolist()))
    counts = set(map(id, used))
    return Column(
        name=arm.name,
        model=arm.vlm.name,
        fingerprint=arm.vlm.fingerprint,
        setting=arm.setting,
        conditions=conditions,
        shots=tuple(used),
        left_out=tuple(shot for shot in shots if id(shot) not in counts),
        peak_meaning=peak_meaning(arm.vlm.model.device),
    )


def refuse_unequal(
    comparisons: Mapping[str, Mapping[int, Comparison]], columns: Sequence[Column]
) -> dict[str, dict[int, Comparison]]:
    """Where answers differ in length, no verdict on the latencies that grow with it."""
    return {
        name: {arm: _refused(comparison, columns[0], columns[arm]) for arm, comparison in by_arm.items()}
        for name, by_arm in comparisons.items()
    }


def _refused(comparison: Comparison, first: Column, other: Column) -> Comparison:
    mine, theirs = _lengths(first), _lengths(other)
    unlike = next((request for request in mine if len(mine[request] | theirs.get(request, mine[request])) > 1), None)
    if comparison.metric not in _GROWS_WITH_ANSWER or unlike is None:
        return comparison
    against = _either(theirs.get(unlike, mine[unlike]))
    lengths = f"answers of unequal length ({against} tokens against {_either(mine[unlike])})"
    decode = "compare decode_ms_per_token, or " if first.source == other.source == "measured" else ""
    advice = f"{decode}make all answers equally long with --exact-tokens"
    not_a_number = Estimate(point=_NAN, low=_NAN, high=_NAN)
    return replace(comparison, ratio=not_a_number, verdict="invalid", flags=(f"{lengths}: {advice}",))


def _lengths(column: Column) -> dict[int, frozenset[int]]:
    """Of each request the lengths of its answers."""
    lengths: dict[int, frozenset[int]] = {}
    for shot in column.shots:
        lengths[shot.request] = lengths.get(shot.request, frozenset()) | {shot.timing.new_tokens}
    return lengths


def _either(lengths: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(lengths)))


def _execution(shot: Shot) -> dict[str, Any]:
    execution = shot.execution
    kept = ("sample_id", "answer", "quality", "sampling_seed", "preprocess_ms", "request_ms")
    tokens = ("prompt_tokens", "image_tokens")
    return {
        **{name: getattr(execution, name) for name in (*kept, *tokens)},
        "disturbed": execution.disturbed,
        **asdict(shot.timing),
        "peak_memory_mib": shot.peak_mib,
        "compiled_decode": shot.compiled,
        "waterfall": asdict(shot.waterfall),
    }
