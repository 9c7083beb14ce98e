"""What paired values of two policies say: five verdicts for accuracy and for latency, the unit being the sample."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from chronostat.compare.judging import verdict_of
from chronostat.compare.reasons import kind_of
from chronostat.compare.sequential import (
    FIRST_LOOK_AT_SAMPLES,
    bounded_mean_interval,
    is_look,
    look_level,
    narrowed,
    sample_interval,
    shows_something,
)
from chronostat.compare.statistics import PairedBootstrap
from chronostat.records import Budget, Comparison, Estimate, LatencyMetric, Verdict
from chronostat.runs.store.validation import AccuracyVerdict
from chronostat.validation.policies import Flags, Floats, Played

ALPHA = 0.05  # of each verdict
Stop = Literal["fixed", "decided"]
Name = tuple[Budget, str]  # of a comparison: the budget and the policy that the controller is compared with


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two policies on the same samples.

    Attributes:
        gains: expected quality of the one less that of the other, shape [n].
        log_ratios: of their expected latencies, over the samples on which neither was disturbed, shape [m].
        left_out: how many samples were left out of the latencies, by reason.
    """

    gains: Floats
    log_ratios: Floats
    left_out: Mapping[str, int]


def pairs_of(ours: Played, other: Played, counting: Flags) -> Pairs:
    """The controller and a rival, sample by sample; those that count, bool of shape [n]."""
    both = zip(ours.disturbed, other.disturbed, counting.tolist(), strict=True)
    reasons = [mine or theirs for mine, theirs, counts in both if counts]
    calm = np.array([reason is None for reason in reasons], dtype=bool)
    ours_ms, other_ms = ours.mean_ms[counting][calm], other.mean_ms[counting][calm]
    return Pairs(
        gains=(ours.accuracy - other.accuracy)[counting],
        log_ratios=np.log(ours_ms) - np.log(other_ms),
        left_out=dict(Counter(kind_of(reason) for reason in reasons if reason is not None)),
    )


def accuracy_verdict(gain: Estimate, margin: float) -> AccuracyVerdict:
    """What the interval of a difference of accuracies says; pure."""
    if not math.isfinite(gain.point + gain.low + gain.high):
        return "invalid"
    if -margin <= gain.low and gain.high <= margin:
        return "same"
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "undecided"


@dataclass
class _State:
    """What the looks at one comparison have shown so far.

    A verdict that was given stays, with an interval that says it: a later one that says something else is not taken.
    """

    last: int = 0
    spent: float = 0.0
    ratio: Estimate | None = None
    gain: Estimate | None = None
    latency: Verdict = "undecided"
    accuracy: AccuracyVerdict = "undecided"

    @property
    def is_decided(self) -> bool:
        return "undecided" not in {self.latency, self.accuracy}


@dataclass(kw_only=True)
class Verdicts:
    """The verdicts of all comparisons of one validation.

    With ``fixed`` there is one look, at the end: a bootstrap interval of the gain, and Wilcoxon's interval of the
    typical latency ratio. With ``decided`` there may be any number: the intervals hold however often one looks
    (``chronostat.compare.sequential``), and are wider for it.

    Attributes:
        metric: the latency that is compared.
        stop: how the number of samples is chosen.
        margin: differences of accuracy, and of latency as a share, up to this are "same".
        seed: of the bootstrap.
    """

    metric: LatencyMetric
    stop: Stop
    margin: float
    seed: int
    _states: dict[Name, _State] = field(default_factory=dict, init=False)

    def look(self, compared: Mapping[Name, Pairs], *, share: float, final: bool = False) -> bool:
        """Look at all comparisons that it is time for.

        Args:
            compared: all pairs so far, by comparison.
            share: of the samples or the time that may be used, as much as has passed.
            final: no more samples follow.

        Returns:
            Whether every verdict is known.
        """
        for name, pairs in compared.items():
            state = self._states.setdefault(name, _State())
            if self.stop == "decided":
                self._look_again(state, pairs, 1.0 if final else share, final=final)
            elif final:
                state.ratio = _ratio(pairs.log_ratios, ALPHA)
                state.latency = _latency_verdict(state.ratio, pairs, self.margin)
                state.gain = PairedBootstrap(len(pairs.gains), self.seed).bounded(pairs.gains, -1.0, 1.0)
                state.accuracy = accuracy_verdict(state.gain, self.margin)
        return all(state.is_decided for state in self._states.values())

    def _look_again(self, state: _State, pairs: Pairs, share: float, *, final: bool) -> None:
        gain = narrowed(bounded_mean_interval(pairs.gains.tolist(), -1.0, 1.0, ALPHA), state.gain)
        accuracy = accuracy_verdict(gain, self.margin)
        if state.accuracy in {"undecided", accuracy}:
            state.gain, state.accuracy = gain, accuracy
        number = len(pairs.log_ratios)
        if is_look(number, state.last, FIRST_LOOK_AT_SAMPLES) or (final and (number > state.last or not number)):
            ratio = _ratio(pairs.log_ratios, look_level(share, state.spent, ALPHA))
            state.spent = max(state.spent, share) if shows_something(ratio) else state.spent
            ratio, state.last = narrowed(ratio, state.ratio), number
            latency = _latency_verdict(ratio, pairs, self.margin)
            if state.latency in {"undecided", latency}:
                state.ratio, state.latency = ratio, latency

    def comparison(self, name: Name, pairs: Pairs) -> tuple[Estimate, AccuracyVerdict, Comparison]:
        """Gain with its verdict, and the latencies' comparison, as the last look left them."""
        state = self._states[name]
        low, high = (state.gain.low, state.gain.high) if state.gain else (math.nan, math.nan)
        gain = Estimate(point=float(pairs.gains.mean()) if len(pairs.gains) else math.nan, low=low, high=high)
        left_out = sum(pairs.left_out.values())
        flags = [f"{left_out} samples with disturbed executions left out"] if left_out else []
        if not len(pairs.log_ratios):
            flags.append("no sample could be used")
        return (
            gain,
            state.accuracy,
            Comparison(
                metric=self.metric,
                ratio=state.ratio or _ratio(pairs.log_ratios, 0.0),
                verdict=state.latency,
                pairs=len(pairs.log_ratios),
                margin=self.margin,
                left_out=pairs.left_out,
                flags=tuple(flags),
            ),
        )


def self_comparison(first_ms: Floats, second_ms: Floats, metric: LatencyMetric, margin: float) -> Comparison:
    """The same setting twice on the same samples (A/A): later / earlier, of the undisturbed pairs; shape [n] each."""
    ratio = _ratio(np.log(second_ms) - np.log(first_ms), ALPHA)
    return Comparison(metric=metric, ratio=ratio, verdict=verdict_of(ratio, margin), pairs=len(first_ms), margin=margin)


def _ratio(log_ratios: Floats, level: float) -> Estimate:
    logs = sample_interval(log_ratios.tolist(), level)
    return Estimate(point=math.exp(logs.point), low=math.exp(logs.low), high=math.exp(logs.high))


def _latency_verdict(ratio: Estimate, pairs: Pairs, margin: float) -> Verdict:
    return verdict_of(ratio, margin) if len(pairs.log_ratios) else "invalid"
