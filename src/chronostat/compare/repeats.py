"""Executing arms in rounds of random order, warm-up apart: what a judgement is made of."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from chronostat.errors import ConfigError

PARTNER = 0  # the arm that all others are compared with
Unit = Literal["repeat", "sample"]
_RETRIES = 1  # of a disturbed repeat, in its place


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One execution of one arm.

    Attributes:
        latency_ms: by metric; all that are given are judged, a metric that an arm lacks has no comparison.
        cost_ms: what executing it cost: less than a whole one if it stopped after the first token.
        left_out: why it is not used: a recognised disturbance, never merely being slow.
        failed: why there is no latency; the arm's verdicts are invalid then.
        shape: what a warm-up is for, if it can change from one sample to the next.
    """

    latency_ms: Mapping[str, float]
    cost_ms: float
    left_out: str | None = None
    failed: str | None = None
    shape: Hashable = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When to stop, and what counts as the same.

    Attributes:
        margin: arms whose ratio lies within a factor of 1 + margin of 1 are the same.
        alpha: the probability with which an arm's intervals may miss its ratio, all looks together.
        cost_limit: as a multiple of the cost of one shot of every arm; warm-up comes on top. A round begins only if it
            fits, as far as costs are known; repeats of it that are tried again may go beyond.
        block: pairs of each arm that run together in random order; 1 where the unit is a sample.
        least_warmup: rounds of all arms that are never used.
        most_warmup: no more of them, whatever they show.
        settled: warm-up ends when all arms together are no faster than before by more than this share.
    """

    margin: float = 0.02
    alpha: float = 0.05
    cost_limit: float = 6.0
    block: int = 3
    least_warmup: int = 2
    most_warmup: int = 5
    settled: float = 0.05

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("margin", 0 <= self.margin < math.inf, "a share such as 0.02, not below 0"),
            ("alpha", 0 < self.alpha < 1, "a probability such as 0.05"),
            ("cost_limit", self.cost_limit >= 1, "at least 1, the cost of one shot of every arm"),
            ("block", self.block >= 1, "at least 1 pair"),
            ("least_warmup", 1 <= self.least_warmup <= self.most_warmup, "at least 1, at most most_warmup"),
            ("settled", 0 < self.settled < 1, "a share such as 0.05"),
        ):
            if not ok:
                raise ConfigError(f"judge: {name} = {getattr(self, name)!r}; allowed is {allowed}")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One execution of a judgement, in the order they ran.

    Attributes:
        round: executions of one round ran together in random order; warm-up rounds have their own numbers.
        unit: what the repeat was asked for: the number of the sample, or of the pair.
    """

    arm: int
    round: int
    unit: int
    warmup: bool
    repeat: Repeat

    @property
    def used(self) -> bool:
        """Whether it counts: neither warm-up, nor disturbed, nor failed."""
        return not self.warmup and self.repeat.left_out is None and self.repeat.failed is None


@dataclass
class _Cost:
    """Mean of costs as they come."""

    count: int = 0
    sum_ms: float = 0.0

    def add(self, cost_ms: float) -> None:
        self.count += 1
        self.sum_ms += cost_ms

    @property
    def mean_ms(self) -> float:
        return self.sum_ms / self.count


@dataclass
class Bench:
    """Executes rounds: every arm of a round in random order."""

    repeat: Callable[[int, int], Repeat]
    arms: int
    metric: str
    rules: Rules
    rng: np.random.Generator
    unit: Unit
    ran: list[Ran] = field(default_factory=list)
    rounds: int = 0
    next_unit: int = 0
    warm: set[tuple[int, Hashable]] = field(default_factory=set)
    failures: dict[int, str] = field(default_factory=dict)
    cost_ms: float = 0.0  # without the warm-up
    warmup_ms: float = 0.0
    _costs: dict[tuple[int, bool], _Cost] = field(default_factory=dict)

    def mean_cost_ms(self, arm: int) -> float:
        """Of a repeat of an arm, of its warm-up while there is nothing else."""
        return (self._costs.get((arm, False)) or self._costs[arm, True]).mean_ms

    def warm_up(self) -> None:
        """Rounds of all arms until they are, all together, no faster than before.

        One count for all arms, from all arms together: an arm cannot end its own warm-up at a lucky moment.
        """
        best = math.inf
        for number in range(1, self.rules.most_warmup + 1):
            done = self._execute(range(self.arms), 1, tries=1)
            self._keep(done, warmup=True)
            level = self._level(done)
            if number >= self.rules.least_warmup and not level < best + math.log1p(-self.rules.settled):
                return
            best = min(best, level)

    def _level(self, round_: Sequence[Ran]) -> float:
        """Of the arms that have not failed: one that has says nothing of when the others are warm."""
        running = (ran.repeat for ran in round_ if ran.arm not in self.failures)
        logs = [log_ms(repeat.latency_ms.get(self.metric, math.nan)) for repeat in running]
        return float(np.mean(logs)) if logs else math.nan

    def round(self, arms: Sequence[int], pairs: int) -> None:
        """The partner and some arms, ``pairs`` repeats of each; again where a sample's shape was seen first."""
        done = self._execute((PARTNER, *arms), pairs)
        fresh = any((each.arm, each.repeat.shape) not in self.warm for each in done)
        self._keep(done, warmup=fresh)
        if fresh:
            self._keep(self._execute((PARTNER, *arms), pairs), warmup=False)
        self.next_unit += pairs

    def _execute(self, arms: Sequence[int], pairs: int, tries: int = 1 + _RETRIES) -> list[Ran]:
        """One round in random order; a disturbed repeat is tried again in its place."""
        slots = [(arm, self.next_unit + pair) for arm in arms for pair in range(pairs)]
        done: list[Ran] = []
        for position in self.rng.permutation(len(slots)).tolist():
            arm, unit = slots[position]
            for _ in range(tries):
                repeat = self.repeat(arm, unit)
                done.append(Ran(arm=arm, round=self.rounds, unit=unit, warmup=False, repeat=repeat))
                if repeat.left_out is None:
                    break
        self.rounds += 1
        return done

    def _keep(self, done: Sequence[Ran], *, warmup: bool) -> None:
        """Add a round to the record and to the sums."""
        for ran in done:
            cost_ms, failed = ran.repeat.cost_ms, ran.repeat.failed
            if warmup:
                self.warm.add((ran.arm, ran.repeat.shape))
                self.warmup_ms += cost_ms
            else:
                self.cost_ms += cost_ms
            if failed is not None:
                self.failures.setdefault(ran.arm, failed)
            self._costs.setdefault((ran.arm, warmup), _Cost()).add(cost_ms)
        self.ran.extend(replace(ran, warmup=warmup) for ran in done)


def log_ms(latency_ms: float) -> float:
    """Logarithm; NaN for what is no latency, so that the verdict is invalid."""
    return math.log(latency_ms) if 0 < latency_ms < math.inf else math.nan
