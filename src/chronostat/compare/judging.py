"""The ``judge`` protocol: which arm is faster, with as few executions as the answer needs.

Arms run interleaved in random order beside a common partner; an arm is repeated only while its verdict is open, up to
a limit of cost; the intervals hold however often one looks (``chronostat.compare.sequential``). What an arm is, and how
it is executed, is the caller's business.

    judged = judge(lambda arm, unit: measure(settings[arm]), len(settings), metric="prefill_ms")
    judged.comparisons["prefill_ms"][1].verdict  # of arm 1 against arm 0
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chronostat.compare.reasons import kind_of
from chronostat.compare.repeats import PARTNER, Bench, Ran, Repeat, Rules, Unit, log_ms
from chronostat.compare.sequential import (
    FIRST_LOOK,
    FIRST_LOOK_AT_SAMPLES,
    Block,
    block_interval,
    is_look,
    look_level,
    narrowed,
    sample_interval,
    shows_something,
)
from chronostat.compare.statistics import NoiseFloor, noise_floor
from chronostat.errors import ConfigError
from chronostat.records import Comparison, Estimate, Verdict

__all__ = ["Judged", "Ran", "Repeat", "Rules", "Unit", "judge", "ratio_of", "verdict_of"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What ``judge`` found.

    Attributes:
        comparisons: by metric, then by arm (1 and up); against arm 0.
        ran: every execution, warm-up and left-out ones among them.
        noise_floor: by metric: what the partner's own repeats differ by (A/A); none where the unit is a sample, since
            samples differ by more than noise.
        cost_ms: of all executions but the warm-up.
        warmup_ms: of the warm-up.
        one_shot_ms: of one shot of every arm, which the limit is a multiple of.
        ended: why it ended, in words.
    """

    comparisons: Mapping[str, Mapping[int, Comparison]]
    ran: tuple[Ran, ...]
    noise_floor: Mapping[str, NoiseFloor]
    cost_ms: float
    warmup_ms: float
    one_shot_ms: float
    ended: str

    @property
    def repeats(self) -> tuple[Ran, ...]:
        """The executions that count."""
        return tuple(ran for ran in self.ran if ran.used)


def verdict_of(ratio: Estimate, margin: float) -> Verdict:
    """What an interval of arm / partner says; pure.

    ``same`` where the whole interval lies within a factor of 1 + margin of 1, also if 1 is not in it; ``faster`` or
    ``slower`` where 1 is outside; ``invalid`` if any number is NaN or the point is not positive.
    """
    low, high, point = ratio.low, ratio.high, ratio.point
    if math.isnan(low) or math.isnan(high) or not 0 < point < math.inf:
        return "invalid"
    if 1 / (1 + margin) <= low and high <= 1 + margin:
        return "same"
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "undecided"


def judge(
    repeat: Callable[[int, int], Repeat],
    arms: int,
    *,
    metric: str,
    rules: Rules | None = None,
    seed: int = 0,
    unit: Unit = "repeat",
    units: int | None = None,
    one_shot_ms: float | None = None,
    advance: Callable[[float, str], None] = lambda fraction, note: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Judged:
    """Execute arms until each one's verdict against arm 0 is known, or the limit of cost is reached.

    Args:
        repeat: ``repeat(arm, unit)`` executes an arm once. With ``unit="sample"`` it takes sample number ``unit``; else
            ``unit`` only counts the pairs.
        arms: how many, the common partner (arm 0) among them.
        metric: the latency that the verdicts and the stopping are for; other metrics of the repeats are judged beside
            it, with intervals that hold too, but nothing is repeated for their sake.
        rules: when to stop; the defaults if absent.
        seed: draws the orders.
        unit: ``repeat``: the same request again and again; arms run in blocks of ``rules.block`` repeats. ``sample``:
            the next repeat is the next sample; arms are compared within samples.
        units: how many samples there are; None: no end.
        one_shot_ms: the cost of one whole shot of every arm together, where repeats may stop after the first token;
            None: the mean cost of the repeats themselves.
        advance: told the share of the limit that is spent, and a note for people, after each round.
        stopped: asked after each round whether to end as if the limit was reached. The intervals hold if what stops
            it has not seen the latencies.

    Raises:
        ConfigError: fewer than 2 arms.
        Exception: whatever ``repeat`` raises.
    """
    if arms < 2:
        raise ConfigError(f"judge: arms = {arms}; it compares at least 2, the first with each of the others")
    rules = rules or Rules()
    bench = Bench(repeat, arms, metric, rules, np.random.default_rng(seed), unit)
    bench.warm_up()
    court = _Court(bench, one_shot_ms, units)
    court.look()  # an arm that fails is known now
    while (task := court.next_task()) is not None:
        bench.round(*task)
        court.look()
        advance(min(1.0, bench.cost_ms / court.limit_ms), f"{len(court.verdicts)} of {arms - 1} verdicts")
        if stopped():
            court.ended = "it was interrupted"
            break
    court.look(last=True)
    return court.result()


@dataclass(frozen=True)
class _Look:
    """What the looks at one arm have shown until now.

    Attributes:
        pairs: planned up to the last one.
        spent: the share of the limit that had passed at the last one that could show something.
        ratios: by metric, the part that the intervals of all looks share.
    """

    pairs: int = 0
    spent: float = 0.0
    ratios: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass
class _Court:
    """Looks at what was executed, gives verdicts, and says what is to be executed next."""

    bench: Bench
    one_shot_ms: float | None
    units: int | None
    planned: Counter[int] = field(default_factory=Counter)
    looks: dict[int, _Look] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    ended: str = ""

    @property
    def limit_ms(self) -> float:
        """What may be spent without the warm-up."""
        return self.bench.rules.cost_limit * self._whole_ms

    @property
    def _whole_ms(self) -> float:
        return (
            sum(map(self.bench.mean_cost_ms, range(self.bench.arms))) if self.one_shot_ms is None else self.one_shot_ms
        )

    @property
    def _first_look(self) -> int:
        return FIRST_LOOK_AT_SAMPLES if self.bench.unit == "sample" else FIRST_LOOK

    @property
    def _no_sample_is_left(self) -> bool:
        return self.units is not None and self.bench.unit == "sample" and self.bench.next_unit >= self.units

    @property
    def _left_ms(self) -> float:
        return self.limit_ms * (1 + 1e-9) - self.bench.cost_ms

    def next_task(self) -> tuple[list[int], int] | None:
        """The arms of the next round, and how many repeats of each; None: it is over, ``ended`` says why."""
        open_arms = [arm for arm in range(1, self.bench.arms) if arm not in self.verdicts]
        left_ms = self._left_ms
        pairs = 1 if self.bench.unit == "sample" else self.bench.rules.block
        if not open_arms:
            self.ended = "every verdict is given"
        elif self._no_sample_is_left:
            self.ended = f"all {self.units} samples were used"
        else:
            chosen = self._affordable(open_arms, left_ms)
            fit = math.floor(left_ms / sum(map(self.bench.mean_cost_ms, (PARTNER, *chosen))))
            if min(pairs, fit) >= 1:
                self.planned.update(dict.fromkeys(chosen, min(pairs, fit)))
                return chosen, min(pairs, fit)
            self.ended = f"the limit of {self.bench.rules.cost_limit:g} times the cost of one shot was reached"
        return None

    def _affordable(self, open_arms: Sequence[int], left_ms: float) -> list[int]:
        """The next repeat goes where it decides most: the arms that are nearest to a verdict for their cost.

        No more of them than the limit can bring there, but at least one. Arms that have not run yet come first.
        """
        fresh = [arm for arm in open_arms if not self.planned[arm]]
        if fresh:
            return fresh
        needed = {arm: self._pairs_needed(arm) for arm in open_arms}
        needs_ms = {arm: pairs * self.bench.mean_cost_ms(arm) for arm, pairs in needed.items()}
        chosen: list[int] = []
        spent_ms = 0.0
        for arm in sorted(open_arms, key=lambda each: needs_ms[each]):
            spent_ms += needs_ms[arm]
            partner_ms = self.bench.mean_cost_ms(PARTNER) * max(needed[each] for each in [*chosen, arm])
            if chosen and spent_ms + partner_ms > left_ms:
                break
            chosen.append(arm)
        return chosen

    def _pairs_needed(self, arm: int) -> int:
        """About how many pairs a verdict still needs: an interval shrinks with the root of their number."""
        look = self.looks.get(arm, _Look())
        ratio = look.ratios.get(self.bench.metric)
        if ratio is None or not math.isfinite(ratio.high) or ratio.low <= 0:
            return max(self._first_look - self.planned[arm], 1)
        width = math.log(ratio.high / ratio.low) / 2
        distance, margin = abs(math.log(ratio.point)), math.log1p(self.bench.rules.margin)
        wanted = max(distance, margin - distance, 1e-6)
        return max(1, math.ceil(look.pairs * (width / wanted) ** 2) - self.planned[arm])

    def look(self, *, last: bool = False) -> None:
        """Look at every open arm whose turn it is; a verdict that is given stays.

        Args:
            last: nothing more will be executed, so it is the turn of all arms that ran since they were looked at.
        """
        for arm in range(1, self.bench.arms):
            before = self.looks.get(arm, _Look())
            turn = is_look(self.planned[arm], before.pairs, self._first_look)
            if arm in self.verdicts:
                continue
            if self._failure(arm) is not None:
                self.verdicts[arm] = "invalid"
            elif turn or (last and self.planned[arm] > before.pairs):
                self.looks[arm] = self._look_at(arm, before, 1.0 if last else self._share_passed(arm))
                self._decide(arm, self.looks[arm].ratios.get(self.bench.metric))

    def _share_passed(self, arm: int) -> float:
        """Of the limit; all of it if not one more pair of the arm can follow."""
        pair_ms = self.bench.mean_cost_ms(PARTNER) + self.bench.mean_cost_ms(arm)
        if self._no_sample_is_left or self._left_ms < pair_ms:
            return 1.0
        of_samples = self.bench.next_unit / self.units if self.units and self.bench.unit == "sample" else 0.0
        return max(of_samples, self.bench.cost_ms / self.limit_ms)

    def _look_at(self, arm: int, before: _Look, share: float) -> _Look:
        level = look_level(share, before.spent, self.bench.rules.alpha)
        ratios = {name: self._ratio(arm, name, level) for name in self._metrics(arm)}
        shared = {name: narrowed(ratio, before.ratios.get(name)) for name, ratio in ratios.items()}
        spent = max(before.spent, share) if any(map(shows_something, ratios.values())) else before.spent
        return _Look(self.planned[arm], spent, shared)

    def _decide(self, arm: int, ratio: Estimate | None) -> None:
        verdict = "undecided" if ratio is None else verdict_of(ratio, self.bench.rules.margin)
        if verdict != "undecided":
            self.verdicts[arm] = verdict

    def _failure(self, arm: int) -> str | None:
        """Why an arm cannot be compared, or None."""
        return self.bench.failures.get(arm) or self.bench.failures.get(PARTNER)

    def _metrics(self, arm: int) -> list[str]:
        """Those by which the arm can be compared: with a used repeat of both in one round at least."""
        names = {name for ran in self.bench.ran if ran.used and ran.arm == arm for name in ran.repeat.latency_ms}
        return sorted(name for name in names if self._blocks(arm, name))

    def _blocks(self, arm: int, metric: str) -> list[Block]:
        """The used repeats of an arm with those of the partner, by round, as logarithms."""
        by_round: dict[int, tuple[list[float], list[float]]] = {}
        for ran in self.bench.ran:
            if ran.used and ran.arm in {PARTNER, arm} and metric in ran.repeat.latency_ms:
                sides = by_round.setdefault(ran.round, ([], []))
                sides[ran.arm == PARTNER].append(log_ms(ran.repeat.latency_ms[metric]))
        return [Block(*sides) for sides in by_round.values() if all(sides)]

    def _ratio(self, arm: int, metric: str, level: float) -> Estimate:
        return ratio_of(self._blocks(arm, metric), level, self.bench.unit)

    def result(self) -> Judged:
        """All comparisons as they stand."""
        metrics = dict.fromkeys(
            [self.bench.metric, *(n for arm in range(1, self.bench.arms) for n in self._metrics(arm))]
        )
        return Judged(
            comparisons={
                name: {arm: self._comparison(arm, name) for arm in range(1, self.bench.arms)} for name in metrics
            },
            ran=tuple(self.bench.ran),
            noise_floor={} if self.bench.unit == "sample" else {name: self._noise_floor(name) for name in metrics},
            cost_ms=self.bench.cost_ms,
            warmup_ms=self.bench.warmup_ms,
            one_shot_ms=self._whole_ms,
            ended=self.ended,
        )

    def _noise_floor(self, metric: str) -> NoiseFloor:
        partner = (ran.repeat.latency_ms for ran in self.bench.ran if ran.used and ran.arm == PARTNER)
        return noise_floor([latency_ms[metric] for latency_ms in partner if metric in latency_ms])

    def _comparison(self, arm: int, metric: str) -> Comparison:
        """Point from all pairs; interval and verdict from the looks."""
        blocks, failure, margin = self._blocks(arm, metric), self._failure(arm), self.bench.rules.margin
        point = ratio_of(blocks, 0.0, self.bench.unit)
        seen = self.looks.get(arm, _Look()).ratios.get(metric, point)
        ratio = Estimate(point=point.point, low=seen.low, high=seen.high)
        verdict = "invalid" if failure else verdict_of(ratio, margin)
        left_out = Counter(
            kind_of(ran.repeat.left_out)
            for ran in self.bench.ran
            if ran.arm == arm and not ran.warmup and ran.repeat.left_out
        )
        flags = [
            *([f"failed: {failure}"] if failure else []),
            *(["no repeat could be used"] if not blocks and not failure else []),
            *([self.ended] if verdict == "undecided" else []),
            *(["too few pairs for an interval"] if verdict == "undecided" and not math.isfinite(ratio.high) else []),
            *([f"{left_out.total()} disturbed repeats left out"] if left_out else []),
        ]
        return Comparison(
            metric=metric,
            ratio=ratio,
            verdict=verdict,
            pairs=sum(min(map(len, block)) for block in blocks),
            margin=margin,
            left_out=dict(left_out),
            flags=tuple(flags),
        )


def ratio_of(blocks: Sequence[Block], level: float, unit: Unit = "repeat") -> Estimate:
    """Arm / partner with its interval of level ``1 - level``, from logarithms of latencies by block; pure.

    Bounds of 0 and infinity say that there are too few pairs for this level.
    """
    if unit == "sample":
        logs = sample_interval([float(np.mean(b.arm) - np.mean(b.partner)) for b in blocks], level)
    else:
        logs = block_interval(blocks, level)
    return Estimate(point=math.exp(logs.point), low=math.exp(logs.low), high=math.exp(logs.high))
