"""The judge protocol with arms whose latencies are known, and counted executions."""

import math
from collections import Counter

import numpy as np
import pytest

from chronostat.compare.judging import Repeat, Rules, judge, ratio_of, verdict_of
from chronostat.compare.sequential import Block
from chronostat.compare.statistics import noise_floor
from chronostat.errors import ConfigError
from chronostat.records import Estimate


class Arms:
    """Latencies in ms with small noise; remembers what was executed."""

    def __init__(self, *levels_ms, noise=0.01, seed=0):
        self.levels_ms, self.noise, self.rng = levels_ms, noise, np.random.default_rng(seed)
        self.calls = []

    def __call__(self, arm, unit):
        self.calls.append((arm, unit))
        prefill_ms = self.levels_ms[arm] * math.exp(self.noise * self.rng.standard_normal())
        return Repeat(latency_ms={"prefill_ms": prefill_ms}, cost_ms=self.levels_ms[arm])


def judged(arms, count, **options):
    return judge(arms, count, metric="prefill_ms", **options)


def log_ms(ran):
    return math.log(ran.repeat.latency_ms["prefill_ms"])


def verdicts(found):
    return {arm: comparison.verdict for arm, comparison in found.comparisons["prefill_ms"].items()}


def test_arms_get_the_verdicts_they_deserve():
    found = judged(Arms(100, 80, 125, 100), 4, rules=Rules(cost_limit=40, margin=0.02))
    assert verdicts(found) == {1: "faster", 2: "slower", 3: "same"}
    assert found.comparisons["prefill_ms"][1].ratio.point == pytest.approx(0.8, rel=0.02)
    assert found.ended == "every verdict is given"


def test_clear_arms_stop_early_and_leave_their_share_to_the_open_one():
    arms = Arms(100, 50, 100)
    found = judged(arms, 3, rules=Rules(cost_limit=12, margin=0.0))
    counts = Counter(ran.arm for ran in found.repeats)
    assert counts[1] == 6  # the first look that can decide
    assert verdicts(found)[2] == "undecided"
    # limit 12 * 250 ms; 6 rounds of 250 ms, what is left pays for 7 rounds of 200 ms
    assert counts[2] == counts[0] == 6 + 7
    assert found.cost_ms == pytest.approx(6 * 250 + 7 * 200)
    assert found.one_shot_ms == pytest.approx(250)
    assert "the limit of 12 times the cost of one shot was reached" in found.comparisons["prefill_ms"][2].flags


def test_what_is_left_goes_to_the_arm_that_is_nearest_to_a_verdict():
    arms = Arms(100, 108, 100, noise=0.05)  # equal arms never get a verdict if nothing is the same
    found = judged(arms, 3, rules=Rules(cost_limit=16, margin=0))
    ran = [{each.arm for each in found.repeats if each.round == number} for number in range(2, 8)]
    # both until the first look; then the limit cannot bring both to a verdict, so arm 1 alone until it has one
    assert ran == [{0, 1, 2}, {0, 1, 2}, {0, 1}, {0, 1}, {0, 1}, {0, 2}]
    assert verdicts(found) == {1: "slower", 2: "undecided"}


@pytest.mark.parametrize("unit", ["repeat", "sample"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_every_arm_runs_before_any_gets_more(limit, unit):
    # 6 pairs of arm 1, which a first look needs, would cost 660 ms of limit * 170 ms, and leave nothing for arm 2
    found = judged(Arms(100, 10, 60), 3, rules=Rules(cost_limit=limit), unit=unit, units=limit)
    counts = Counter(ran.arm for ran in found.repeats)
    assert counts[1] >= counts[2] >= 1
    assert found.cost_ms <= limit * 170 * (1 + 1e-9)


@pytest.mark.parametrize("limit", [9, 8, 9.5], ids=["at a look", "between looks", "less than a pair is left"])
def test_an_interval_is_what_all_looks_share_each_at_its_own_level(limit):
    # 6 pairs, then 3 or 2: after 8 it is not yet time for the look after 9, but nothing more will be executed
    found = judged(Arms(100, 100, noise=0.05, seed=3), 2, rules=Rules(cost_limit=limit, margin=0))
    blocks = []
    for number in sorted({ran.round for ran in found.repeats}):
        ran = [each for each in found.repeats if each.round == number]
        blocks.append(Block(*([log_ms(each) for each in ran if each.arm == arm] for arm in (1, 0))))
    first = ratio_of(blocks[:2], 0.05 * 6 / limit)  # what has passed of the limit
    second = ratio_of(blocks, 0.05 * (1 - 6 / limit))  # the rest: not one more pair can follow
    ratio = found.comparisons["prefill_ms"][1].ratio
    assert ratio.point == second.point
    assert (ratio.low, ratio.high) == (max(first.low, second.low), min(first.high, second.high))
    assert first.low != second.low


def test_every_round_runs_partner_and_arms_equally_often_in_random_order():
    found = judged(Arms(100, 100), 2, rules=Rules(cost_limit=12, margin=0))
    rounds = [[ran.arm for ran in found.ran if ran.round == number and not ran.warmup] for number in range(2, 6)]
    assert all(sorted(order) == [0, 0, 0, 1, 1, 1] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_a_limit_that_ends_between_blocks_makes_the_last_one_smaller():
    found = judged(Arms(100, 60), 2, rules=Rules(cost_limit=5))
    assert [sum(ran.round == number for ran in found.repeats) for number in (2, 3)] == [6, 4]
    assert verdicts(found) == {1: "faster"}  # the look at the end of 5 pairs


def test_what_stops_it_from_outside_leaves_an_interval():
    arms = Arms(100, 100)
    found = judged(arms, 2, rules=Rules(cost_limit=200, margin=0.0), stopped=lambda: len(arms.calls) >= 40)
    comparison = found.comparisons["prefill_ms"][1]
    assert (found.ended, comparison.verdict) == ("it was interrupted", "undecided")
    assert 15 <= comparison.pairs <= 20
    assert 0 < comparison.ratio.low < 1 < comparison.ratio.high < math.inf


def test_repeats_cut_to_one_token_count_as_what_they_cost():
    arms = Arms(100, 100)
    whole = judged(arms, 2, rules=Rules(cost_limit=6, margin=0))
    cut = judged(arms, 2, rules=Rules(cost_limit=6, margin=0), one_shot_ms=2 * 150.0)  # a whole one would cost 150 ms
    assert len(whole.repeats) == 2 * 6
    assert len(cut.repeats) == 2 * 9  # 6 * 300 / 200
    assert cut.cost_ms == 1800


def test_warm_up_is_apart_and_ends_for_all_arms_at_once():
    class Cold(Arms):
        def __call__(self, arm, unit):
            repeat = super().__call__(arm, unit)
            calls = sum(each == arm for each, _ in self.calls)
            factor = {0: {1: 4.0, 2: 2.0, 3: 1.5}, 1: {}}[arm].get(calls, 1.0)  # only arm 0 needs to warm up
            return Repeat(latency_ms={"prefill_ms": repeat.latency_ms["prefill_ms"] * factor}, cost_ms=repeat.cost_ms)

    found = judged(Cold(100, 60), 2)
    warmup = Counter(ran.arm for ran in found.ran if ran.warmup)
    assert warmup == {0: 5, 1: 5}  # rounds 2, 3 and 4 were faster than before, round 5 was not
    assert found.warmup_ms == 5 * 160
    assert found.comparisons["prefill_ms"][1].ratio.point == pytest.approx(0.6, rel=0.02)
    stabilised = judged(Arms(100, 60), 2)
    assert Counter(ran.arm for ran in stabilised.ran if ran.warmup) == {0: 2, 1: 2}


def test_disturbed_repeats_are_left_out_tried_again_and_counted():
    class Disturbed(Arms):
        def __call__(self, arm, unit):
            repeat = super().__call__(arm, unit)
            if arm == 1 and len(self.calls) % 4 == 0:
                why = f"stolen CPU time {10 * len(self.calls)} ms"
                return Repeat(latency_ms={"prefill_ms": 1e4}, cost_ms=100, left_out=why)
            return repeat

    found = judged(Disturbed(100, 80), 2)
    comparison = found.comparisons["prefill_ms"][1]
    assert comparison.verdict == "faster"
    assert comparison.ratio.point == pytest.approx(0.8, rel=0.02)
    left_out = sum(ran.repeat.left_out is not None for ran in found.ran if not ran.warmup)
    assert comparison.left_out == {"stolen CPU time": left_out}
    assert left_out > 0
    assert f"{left_out} disturbed repeats left out" in comparison.flags
    assert found.cost_ms <= 6 * found.one_shot_ms * 1.01  # they count as what they cost


def test_nothing_but_disturbed_repeats_is_invalid():
    disturbed = Repeat(latency_ms={"prefill_ms": 100.0}, cost_ms=100, left_out="throttled")
    found = judged(lambda arm, unit: disturbed, 2)
    comparison = found.comparisons["prefill_ms"][1]
    assert comparison.verdict == "invalid"
    assert comparison.pairs == 0
    assert "no repeat could be used" in comparison.flags


def test_an_arm_that_has_not_met_its_partner_yet_stays_open():
    def repeat(arm, unit):
        early = unit < 6 and arm == (unit >= 3)  # the first round uses arm 1 only, the second one arm 0
        return Repeat(latency_ms={"prefill_ms": 5.0 + arm}, cost_ms=1, left_out="throttled" if early else None)

    comparison = judged(repeat, 2, rules=Rules(cost_limit=30)).comparisons["prefill_ms"][1]
    assert comparison.verdict == "slower"
    assert comparison.pairs == 15 - 6  # the look after 9 has 3 of each, too few; the next one is after 15


def test_a_failed_arm_does_not_end_the_warm_up_of_the_others():
    calls = Counter()

    def repeat(arm, unit):
        calls[arm] += 1
        if arm == 2:
            return Repeat(latency_ms={}, cost_ms=1, failed="out of memory")
        return Repeat(latency_ms={"prefill_ms": 100.0 / min(calls[arm], 4)}, cost_ms=1)

    found = judged(repeat, 3)
    assert Counter(ran.arm for ran in found.ran if ran.warmup) == {0: 5, 1: 5, 2: 5}  # round 5 was no faster
    assert verdicts(found) == {1: "same", 2: "invalid"}


@pytest.mark.parametrize(("failing", "expected"), [(1, {1: "invalid", 2: "faster"}), (0, {1: "invalid", 2: "invalid"})])
def test_a_failure_is_never_a_number(failing, expected):
    arms = Arms(100, 80, 80)

    def repeat(arm, unit):
        ran = arms(arm, unit)
        return Repeat(latency_ms={}, cost_ms=1, failed="out of memory") if arm == failing else ran

    found = judged(repeat, 3)
    assert verdicts(found) == expected
    assert "failed: out of memory" in found.comparisons["prefill_ms"][1].flags
    assert Counter(arm for arm, _ in arms.calls)[1] == (2 if failing == 1 else Counter(a for a, _ in arms.calls)[2])


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("latency_ms", [math.nan, 0.0, -1.0, math.inf])
def test_what_is_no_latency_is_invalid(latency_ms, bad):
    def repeat(arm, unit):
        return Repeat(latency_ms={"prefill_ms": latency_ms if arm == bad and unit == 1 else 5.0}, cost_ms=1)

    found = judged(repeat, 2)
    assert verdicts(found) == {1: "invalid"}
    assert math.isnan(found.noise_floor["prefill_ms"].spread) == (bad == 0)


def test_other_metrics_are_judged_beside_it():
    rng = np.random.default_rng(0)

    def repeat(arm, unit):
        prefill_ms = (100, 80)[arm] * math.exp(0.01 * rng.standard_normal())
        decode = {"decode_ms_per_token": (5, 6)[arm] * math.exp(0.01 * rng.standard_normal())}
        return Repeat(latency_ms={"prefill_ms": prefill_ms, **decode, **({"x_ms": 1.0} if arm else {})}, cost_ms=1)

    found = judged(repeat, 2)
    assert {name: by_arm[1].verdict for name, by_arm in found.comparisons.items()} == {
        "prefill_ms": "faster",
        "decode_ms_per_token": "slower",
    }
    assert found.noise_floor["prefill_ms"].repeats == 6


def test_with_samples_the_next_repeat_is_the_next_sample():
    base_ms = np.random.default_rng(1).uniform(10, 1000, size=40)  # samples differ far more than arms
    rng, seen = np.random.default_rng(0), []

    def repeat(arm, unit):
        seen.append((arm, unit))
        ms = base_ms[unit] * (1, 0.9)[arm] * math.exp(0.02 * rng.standard_normal())
        return Repeat(latency_ms={"prefill_ms": ms}, cost_ms=ms)

    found = judged(repeat, 2, unit="sample", units=40, rules=Rules(cost_limit=1000))
    assert verdicts(found) == {1: "faster"}
    assert found.comparisons["prefill_ms"][1].ratio.point == pytest.approx(0.9, rel=0.02)
    assert [unit for _, unit in seen] == [0] * 4 + [n for n in range(8) for _ in "ab"]  # warm-up, then 8 samples
    assert found.noise_floor == {}  # what successive samples differ by is no noise


def test_a_look_that_can_show_nothing_spends_nothing():
    """After 8 of 100 samples 0.4 % is asked for, and 2 of 2^8 signs are 0.8 %: the look after 12 has it all."""
    found = judged(Arms(100, 80, noise=0.05), 2, unit="sample", units=100, rules=Rules(cost_limit=1000))
    logs = [[log_ms(ran) for ran in found.repeats if ran.arm == arm] for arm in (1, 0)]
    expected = ratio_of([Block([arm], [partner]) for arm, partner in zip(*logs, strict=True)], 0.05 * 0.12, "sample")
    assert len(logs[0]) == 12
    assert found.comparisons["prefill_ms"][1].ratio == expected


def test_samples_that_end_before_the_first_look_are_looked_at_once():
    found = judged(Arms(100, 80), 2, unit="sample", units=7, rules=Rules(cost_limit=100))
    assert verdicts(found) == {1: "faster"}  # 1 of 2^7 signs is .8 % on each side, 5 % * (1 - 2 / 7) are asked for
    assert found.comparisons["prefill_ms"][1].pairs == 7


def test_samples_that_are_used_up_leave_an_open_verdict():
    def repeat(arm, unit):
        return Repeat(latency_ms={"prefill_ms": 10.0 + arm * (-1) ** unit}, cost_ms=1)

    equal = judged(repeat, 2, unit="sample", units=20, rules=Rules(cost_limit=1000))
    assert verdicts(equal) == {1: "undecided"}
    assert equal.ended == "all 20 samples were used"


def test_a_shape_that_is_new_is_warmed_up_apart():
    calls = []

    def repeat(arm, unit):
        calls.append((arm, unit))
        return Repeat(latency_ms={"prefill_ms": 1.0 + arm}, cost_ms=1, shape="long" if unit >= 2 else "short")

    found = judged(repeat, 2, unit="sample", units=4, rules=Rules(cost_limit=100))
    units = Counter(ran.unit for ran in found.ran if ran.warmup and ran.arm == 1)
    assert units == {0: 2, 2: 1}
    assert Counter(ran.unit for ran in found.repeats if ran.arm == 1) == {0: 1, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("low", "point", "high", "verdict"),
    [
        (0.8, 0.9, 0.99, "faster"),
        (1.01, 1.1, 1.2, "slower"),
        (0.99, 1.0, 1.01, "same"),
        (0.985, 0.99, 0.995, "same"),  # faster, but by less than anybody cares for
        (1 / 1.02, 1.0, 1.02, "same"),
        (0.9, 1.0, 1.1, "undecided"),
        (0.0, 0.5, math.inf, "undecided"),
        (math.nan, 1.0, 1.1, "invalid"),
        (0.9, math.nan, 1.1, "invalid"),
        (0.9, 0.0, 1.1, "invalid"),
    ],
)
def test_verdicts(low, point, high, verdict):
    assert verdict_of(Estimate(low=low, point=point, high=high), 0.02) == verdict


def test_ratio_of_a_fixed_number_of_pairs():
    blocks = [Block(arm=np.log([2.0, 2.2, 2.1]).tolist(), partner=np.log([1.0, 1.1, 1.05]).tolist())] * 2
    ratio = ratio_of(blocks, 0.05)
    assert ratio.point == pytest.approx(2.0)
    assert ratio.low == pytest.approx(2 / 1.1, rel=0.05)
    assert 2 < ratio.high < 2.3


def test_noise_floor_and_the_pairs_that_it_asks_for():
    floor = noise_floor([100, 110, 100, 110, 100])
    assert floor.spread == pytest.approx(0.1)
    assert floor.repeats == 5
    # s = ln(1.1) / 0.6745 = 0.1413; ((1.960 + 1.2816) * 0.1413 / ln(1.05)) ** 2 = 88.1
    assert floor.pairs_to_separate(0.05) == 89
    assert noise_floor([100]).pairs_to_separate(0.05) is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"cost_limit": 0.5}, "cost_limit = 0.5; allowed is at least 1, the cost of one shot of every arm"),
        ({"margin": math.nan}, "margin = nan; allowed is a share such as 0.02"),
        ({"alpha": 1.0}, "alpha = 1.0"),
        ({"block": 0}, "block = 0"),
        ({"least_warmup": 6}, "least_warmup = 6; allowed is at least 1, at most most_warmup"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, message):
    with pytest.raises(ConfigError, match=message):
        Rules(**rules)


def test_one_arm_is_not_enough():
    with pytest.raises(ConfigError, match="arms = 1; it compares at least 2"):
        judged(Arms(1), 1)
