"""Which way finds the slower of two arms? All are tried on a recorded series that differs by a known share.

Each attempt starts at a random place of the series and takes the executions from there on in the order they ran, so
drift, steps, spikes and their neighbourhood stay. One arm's latencies and costs are multiplied by 1 + difference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.misranking.series import Length, Row, Series
from chronostat.compare.judging import Repeat, Rules, judge, ratio_of
from chronostat.compare.sequential import Block
from chronostat.records import Estimate, Verdict

DIFFERENCES = (0.02, 0.05, 0.10, 0.20)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one way said once.

    Attributes:
        error: log of the ratio that it says, less that of the true one.
        true: log of the true ratio.
        cost: of the executions, 1 = one whole execution of each arm.
        ratio: with its interval, where the way gives one.
    """

    error: float
    true: float
    cost: float
    ratio: Estimate | None = None
    verdict: Verdict | None = None
    left_out: int = 0

    @property
    def wrong(self) -> float:
        """1 if the order is wrong; half where both arms look equal or nothing is said."""
        said = self.true + self.error
        return 0.5 if said == 0 or math.isnan(said) else float((said > 0) != (self.true > 0))

    @property
    def wrong_verdicts(self) -> set[Verdict]:
        """What would be false: the other order, and either order of equal arms."""
        if self.true == 0:
            return {"faster", "slower"}
        return {"faster"} if self.true > 0 else {"slower"}

    @property
    def covers(self) -> bool:
        """Whether the interval holds the truth."""
        assert self.ratio is not None
        return self.ratio.low <= math.exp(self.true) <= self.ratio.high


class Playback:
    """A series that runs again, as two arms.

    Args:
        series: the recording.
        metric: which latency.
        slower: the arm that is multiplied.
        difference: by 1 + this.
        start: where to begin, as a share of the series.
        stretch: by how much deviations from the median are enlarged, in logarithms; 1: as recorded.
    """

    def __init__(
        self, series: Series, metric: str, *, slower: int, difference: float, start: float, stretch: float = 1.0
    ) -> None:
        self._series, self.metric, self._start, self._stretch = series, metric, start, stretch
        self._factors = (1.0, 1.0 + difference) if slower else (1.0 + difference, 1.0)
        self._taken = 0
        self._spent_ms = 0.0
        self.true = math.log(self._factors[1] / self._factors[0])
        self.one_shot_ms = series.mean_cost_ms("whole") * sum(self._factors)

    @property
    def cost(self) -> float:
        """Of what ran until now."""
        return self._spent_ms / self.one_shot_ms

    def run(self, arm: int, length: Length) -> Repeat:
        """The next execution of this length, as the arm's."""
        row = self._next(length)
        cost_ms = row.cost_ms * self._factors[arm]
        self._spent_ms += cost_ms
        latency_ms = self._stretched(getattr(row, self.metric), length) * self._factors[arm]
        return Repeat(latency_ms={self.metric: latency_ms}, cost_ms=cost_ms, left_out=row.disturbed)

    def log(self, arm: int, length: Length) -> float:
        """Log latency of the next execution, disturbed or not."""
        return math.log(self.run(arm, length).latency_ms[self.metric])

    def _next(self, length: Length) -> Row:
        rows = self._series.of(length)
        row = rows[(int(self._start * len(rows)) + self._taken) % len(rows)]
        self._taken += 1
        return row

    def _stretched(self, latency_ms: float, length: Length) -> float:
        median_ms = self._series.median_ms(length, self.metric)
        return median_ms * (latency_ms / median_ms) ** self._stretch


Way = Callable[[Playback, np.random.Generator], Attempt]


def in_blocks(k: int, summary: Callable[[np.ndarray], float]) -> Way:
    """One arm ``k`` times, then the other, whole executions; which one first is random."""

    def way(playback: Playback, rng: np.random.Generator) -> Attempt:
        logs = {arm: np.array([playback.log(arm, "whole") for _ in range(k)]) for arm in rng.permutation(2).tolist()}
        return _attempt(playback, summary(logs[1]) - summary(logs[0]))

    return way


def in_pairs(k: int, length: Length) -> Way:
    """``k`` pairs in random order, the median of their ratios."""

    def way(playback: Playback, rng: np.random.Generator) -> Attempt:
        pairs = [{arm: playback.log(arm, length) for arm in rng.permutation(2).tolist()} for _ in range(k)]
        return _attempt(playback, float(np.median([pair[1] - pair[0] for pair in pairs])))

    return way


def by_judge(rules: Rules, length: Length) -> Way:
    """The ``judge`` protocol itself; its warm-up is no part of the cost."""

    def way(playback: Playback, rng: np.random.Generator) -> Attempt:
        judged = judge(
            lambda arm, _: playback.run(arm, length),
            2,
            metric=playback.metric,
            rules=rules,
            seed=int(rng.integers(2**31)),
            one_shot_ms=playback.one_shot_ms if length == "one" else None,
        )
        found = judged.comparisons[playback.metric][1]
        return Attempt(
            error=math.log(found.ratio.point) - playback.true,
            true=playback.true,
            cost=judged.cost_ms / playback.one_shot_ms,
            ratio=found.ratio,
            verdict=found.verdict,
            left_out=sum(ran.repeat.left_out is not None for ran in judged.ran),
        )

    return way


def fixed_number(pairs: int, block: int, length: Length) -> Way:
    """The interval of a number of pairs that was fixed beforehand, in blocks of random order."""

    def way(playback: Playback, rng: np.random.Generator) -> Attempt:
        blocks: list[Block] = []
        for begin in range(0, pairs, block):
            sides: tuple[list[float], list[float]] = ([], [])
            for arm in rng.permutation(np.repeat([0, 1], min(block, pairs - begin))).tolist():
                sides[arm].append(playback.log(arm, length))
            blocks.append(Block(arm=sides[1], partner=sides[0]))
        ratio = ratio_of(blocks, 0.05)
        return _attempt(playback, math.log(ratio.point), ratio)

    return way


def _attempt(playback: Playback, said: float, ratio: Estimate | None = None) -> Attempt:
    return Attempt(error=said - playback.true, true=playback.true, cost=playback.cost, ratio=ratio)


def attempts(
    way: Way, series: Series, metric: str, difference: float, *, times: int, seed: int, stretch: float = 1.0
) -> list[Attempt]:
    """Try a way at ``times`` places that are spread over the series, with either arm as the slower one."""
    rng = np.random.default_rng([seed, round(1e4 * difference)])
    starts = (np.arange(times) + rng.random(times)) / times
    return [
        way(
            Playback(series, metric, slower=i % 2, difference=difference, start=float(start), stretch=stretch),
            rng,
        )
        for i, start in enumerate(starts)
    ]


def summary(tried: list[Attempt]) -> dict[str, Any]:
    """Share of wrong orders, and mean cost; with intervals also coverage, median width, and shares of verdicts."""
    row: dict[str, Any] = {
        "wrong": float(np.mean([a.wrong for a in tried])),
        "cost": float(np.mean([a.cost for a in tried])),
        "most_cost": float(np.max([a.cost for a in tried])),
    }
    ratios = [a.ratio for a in tried if a.ratio is not None]
    if ratios:
        row["coverage"] = float(np.mean([a.covers for a in tried]))
        row["width"] = float(np.median([math.log(r.high) - math.log(r.low) if r.low > 0 else math.inf for r in ratios]))
    if tried[0].verdict is not None:
        row["verdicts"] = {v: float(np.mean([a.verdict == v for a in tried])) for v in ("faster", "slower", "same")}
        row["wrong_verdicts"] = float(np.mean([a.verdict in a.wrong_verdicts for a in tried]))
        row["left_out"] = float(np.mean([a.left_out for a in tried]))
    return row
