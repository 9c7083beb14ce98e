"""Can this machine be trusted with a measurement? What ``chronostat doctor`` finds out and says."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from transformers import GenerationConfig

from chronostat.compare.reasons import kind_of
from chronostat.compare.sequential import sample_interval
from chronostat.compare.statistics import median_interval, noise_floor
from chronostat.errors import ConfigError
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import SampleRequest, execute, explaining_errors
from chronostat.machine.findings import Finding, gpu_findings, machine_findings
from chronostat.machine.gpu import Gpu, gpu_of
from chronostat.machine.linux import Linux
from chronostat.machine.stabilise import stabilised
from chronostat.machine.watch import MachineWatch
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.flow import parts_followed
from chronostat.models.load import Vlm
from chronostat.records import Conditions, Estimate, Execution, Setting

Verdict = Literal["trustworthy", "noisy", "cannot measure"]
EXIT_STATUS: Mapping[Verdict, int] = {"trustworthy": 0, "noisy": 10, "cannot measure": 11}
METRICS = ("prefill_ms", "decode_ms_per_token")
DIFFERENCES = (0.02, 0.05, 0.10)

LEAST_PAIRS = 6
"""Fewer have no distribution-free 95 % interval."""
MOST_PAIRS = 200
TRUSTED_PAIRS = 30
"""More than this to separate 5 %, and the machine is noisy."""
TRUSTED_SHARE = 0.2
"""More repeats disturbed than this, and the machine is noisy."""
_WARMUP = 3
_NEW_TOKENS = 9  # 8 decode steps
_ALPHA = 0.05  # of the interval between equal arms; a bootstrap of so few pairs would be too narrow


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What equal arms differ by in one latency.

    Attributes:
        median_ms: of all repeats that were used.
        ratio: A / B, typical of the pairs (``sample_interval``); its 95 % interval should hold 1.
        spread: half of all repeats differ from the next one by more than this share.
        pairs: for each true difference how many interleaved pairs separate it with a probability of 90 %.
    """

    metric: str
    median_ms: Estimate
    ratio: Estimate
    spread: float
    pairs: Mapping[float, int]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found.

    Attributes:
        findings: facts of the machine, each with what to do about it.
        floors: measured A/A noise; of each metric that the model has.
        pairs: interleaved pairs whose both repeats were used.
        repeats: that were executed after the warm-up.
        disturbed: how many of these were not used, by reason: a disturbance, or stages that could not be trusted.
        unmeasured: why the stages could not be measured in any repeat; None: they could.
    """

    model: str
    conditions: Conditions
    findings: tuple[Finding, ...]
    floors: tuple[Floor, ...]
    pairs: int
    repeats: int
    disturbed: Mapping[str, int]
    unmeasured: str | None

    @property
    def disturbed_share(self) -> float:
        """Of all repeats."""
        return sum(self.disturbed.values()) / self.repeats if self.repeats else 0.0

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the machine is less than trustworthy, in words; with what to do where no finding says it."""
        doubts = [f"{each.topic}: {each.fact}" for each in self.findings if each.level == "problem"]
        if self.unmeasured is not None:
            doubts.append(f"the stages cannot be measured: {self.unmeasured}")
        elif self.pairs < LEAST_PAIRS:
            doubts.append(f"{self.pairs} undisturbed pairs, at least {LEAST_PAIRS} are needed; give more --seconds")
        if self.disturbed_share > TRUSTED_SHARE:
            share = 100 * self.disturbed_share
            doubts.append(f"{share:.0f} % of the repeats were disturbed; end what disturbs, or wait for a quieter hour")
        for floor in self.floors:
            needed = floor.pairs.get(0.05, 0)
            if needed > TRUSTED_PAIRS:
                way_out = "compare with as many repeats or more, or at a quieter hour"
                doubts.append(f"{floor.metric}: {needed} pairs are needed to separate 5 %; {way_out}")
        return tuple(doubts)

    @property
    def verdict(self) -> Verdict:
        """Whether latencies of this machine can be trusted now."""
        if self.pairs < LEAST_PAIRS or self.unmeasured is not None:
            return "cannot measure"
        return "noisy" if self.doubts else "trustworthy"

    @property
    def exit_status(self) -> int:
        """Of the command."""
        return EXIT_STATUS[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Plain data, all numbers finite."""
        return {
            "verdict": self.verdict,
            "exit_status": self.exit_status,
            "doubts": list(self.doubts),
            "model": self.model,
            "conditions": asdict(self.conditions),
            "findings": [asdict(each) for each in self.findings],
            "noise_floor": [_floor_json(floor) for floor in self.floors],
            "pairs": self.pairs,
            "repeats": self.repeats,
            "disturbed": dict(self.disturbed),
            "disturbed_share": self.disturbed_share,
        }


def examine(
    vlm: Vlm,
    request: SampleRequest,
    *,
    seconds: float,
    clock: Clock | None = None,
    watch: MachineWatch | None = None,
    gpu: Gpu | None = None,
    run: Callable[[], Execution] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Examination:
    """Execute one request again and again, as two arms that are the same, and look at the machine meanwhile.

    Args:
        vlm: model and processor.
        request: any request.
        seconds: time box of the repeats; the warm-up comes before.
        clock: of the time box; the device's own if absent.
        watch: of the machine; of this one if absent.
        gpu: that the model is on; found by torch if absent.
        run: one execution; of the request if absent.
        stopped: asked after each pair whether to end before the time box does.

    Raises:
        ConfigError: the time box is not positive.
        MeasurementError: the model raised something.
    """
    if not seconds > 0:
        raise ConfigError(f"seconds = {seconds!r}: repeats need some time; give seconds above 0")
    clock, gpu = clock or clock_for(vlm.model.device), gpu or gpu_of(vlm.model.device)
    run = run or (lambda: _execute(vlm, request))
    with stabilised():
        with parts_followed(vlm.model):
            run()
        for _ in range(_WARMUP - 1):
            run()
        watch = watch or MachineWatch(Linux())
        earlier = gpu.state() if gpu else None
        pairs = _pairs(run, clock, seconds, stopped)
        findings = (*machine_findings(watch.seen()), *gpu_findings(gpu, vlm.model.device, earlier))
        conditions = read_conditions(vlm.model)
    return examined(vlm.name, conditions, findings, pairs)


def examined(
    model: str, conditions: Conditions, findings: Sequence[Finding], pairs: Sequence[tuple[Execution, Execution]]
) -> Examination:
    """What follows from pairs of equal executions."""
    repeats = [execution for pair in pairs for execution in pair]
    used = [pair for pair in pairs if not any(execution.disturbed or _unseen(execution) for execution in pair)]
    unseen = [why for each in repeats if (why := _unseen(each))]
    unmeasured = unseen[0] if unseen and len(unseen) == len(repeats) else None
    whys = [each.disturbed or (None if unmeasured else _unseen(each)) for each in repeats]
    floors = [_floor(metric, used) for metric in METRICS] if len(used) >= LEAST_PAIRS else []
    return Examination(
        model=model,
        conditions=conditions,
        findings=tuple(findings),
        floors=tuple(floor for floor in floors if floor is not None),
        pairs=len(used),
        repeats=len(repeats),
        disturbed=Counter(kind_of(why) for why in whys if why),
        unmeasured=unmeasured,
    )


def _execute(vlm: Vlm, request: SampleRequest) -> Execution:
    # forced to decode: the bundled task is answered with two tokens
    longer = GenerationConfig(min_new_tokens=_NEW_TOKENS)
    with explaining_errors(f"{vlm.name}: the request"):
        return execute(vlm.model, request, setting=Setting(), max_new_tokens=_NEW_TOKENS, generation_config=longer)


def _pairs(
    run: Callable[[], Execution], clock: Clock, seconds: float, stopped: Callable[[], bool]
) -> list[tuple[Execution, Execution]]:
    """Executions of A and B, one after the other in random order, until the time box ends or it is stopped."""
    rng = np.random.default_rng(0)
    start_ns, pairs = clock.host_ns(), []
    while len(pairs) < MOST_PAIRS and clock.host_ms_since(start_ns) < 1e3 * seconds and not stopped():
        first, second = run(), run()
        pairs.append((first, second) if rng.integers(2) else (second, first))
    return pairs


def _unseen(execution: Execution) -> str | None:
    """Why the stages of a repeat cannot be used; None: they can."""
    timing = execution.timing
    if timing is None:
        return execution.invalid
    return None if timing.source == "measured" else timing.unseen or timing.source


def _floor(metric: str, pairs: Sequence[tuple[Execution, Execution]]) -> Floor | None:
    values = [[getattr(execution.timing, metric) for execution in pair] for pair in pairs]
    if any(value is None for pair in values for value in pair):
        return None
    latencies = np.asarray(values, dtype=np.float64)
    ratio = sample_interval(np.log(latencies[:, 0] / latencies[:, 1]).tolist(), _ALPHA)
    noise = noise_floor(latencies.ravel().tolist())
    needed = {difference: noise.pairs_to_separate(difference) for difference in DIFFERENCES}
    return Floor(
        metric=metric,
        median_ms=median_interval(latencies.ravel().tolist()),
        ratio=Estimate(point=math.exp(ratio.point), low=math.exp(ratio.low), high=math.exp(ratio.high)),
        spread=noise.spread,
        pairs={difference: pairs for difference, pairs in needed.items() if pairs is not None},
    )


def _floor_json(floor: Floor) -> dict[str, Any]:
    plain = asdict(floor)
    return {**plain, "pairs": {f"{100 * difference:g}%": pairs for difference, pairs in floor.pairs.items()}}
