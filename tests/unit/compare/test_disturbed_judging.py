"""A machine that drifts, steps and has spikes, on a fake clock: the protocol holds, comparing without it does not."""

import math

import numpy as np
import pytest

from chronostat.compare.judging import Repeat, Rules, judge, ratio_of
from chronostat.compare.sequential import Block
from chronostat.measure.clock import FakeClock

DIFFERENCE = 0.10
TIMES = 60


class Machine:
    """Executes for as long as its state at that time says; arm 1 costs 1.10 times as much.

    Drift: a slow wave of 15 %. Steps: another program runs for some seconds of each ten and makes everything 1.5 times
    as long. Spikes: one execution of 20 takes two to four times as long.
    """

    def __init__(self, seed):
        self.clock, self.rng = FakeClock(), np.random.default_rng(seed)
        self.clock.advance_ms(self.rng.uniform(0, 60_000))

    def run(self, arm):
        start_ns = self.clock.host_ns()
        now_s = start_ns / 1e9
        drift = 1 + 0.15 * math.sin(2 * math.pi * now_s / 40)
        step = 1.5 if now_s % 10 < 3 else 1.0
        spike = self.rng.uniform(2, 4) if self.rng.random() < 0.05 else 1.0
        noise = math.exp(0.04 * self.rng.standard_normal())
        self.clock.advance_ms(200 * (1 + DIFFERENCE if arm else 1) * drift * step * spike * noise)
        return self.clock.host_ms_since(start_ns)


def judged(seed):
    machine = Machine(seed)

    def repeat(arm, unit):
        ms = machine.run(arm)
        return Repeat(latency_ms={"total_ms": ms}, cost_ms=ms)

    return judge(repeat, 2, metric="total_ms", rules=Rules(cost_limit=8), seed=seed).comparisons["total_ms"][1]


def in_blocks(seed):
    """As many executions, one arm after the other, with the interval that they would have in random order."""
    machine = Machine(seed)
    first = seed % 2
    logs = {arm: [math.log(machine.run(arm)) for _ in range(8)] for arm in (first, 1 - first)}
    return ratio_of([Block(arm=logs[1], partner=logs[0])], 0.05)


def one_shot(seed):
    machine = Machine(seed)
    first = seed % 2
    ms = {arm: machine.run(arm) for arm in (first, 1 - first)}
    return ms[1] / ms[0]


def share(flags):
    return np.mean(list(flags))


@pytest.fixture(scope="module")
def comparisons():
    return [judged(seed) for seed in range(TIMES)]


def test_order_and_coverage_hold_with_the_protocol(comparisons):
    assert share(each.ratio.point < 1 for each in comparisons) <= 0.05
    assert share(each.ratio.low <= 1 + DIFFERENCE <= each.ratio.high for each in comparisons) >= 0.92
    assert not any(each.verdict == "faster" for each in comparisons)


def test_order_and_coverage_are_lost_without_it(comparisons):
    blocks = [in_blocks(seed) for seed in range(TIMES)]
    assert share(each.point < 1 for each in blocks) >= 0.15
    assert share(each.low <= 1 + DIFFERENCE <= each.high for each in blocks) <= 0.75
    assert share(each.high < 1 for each in blocks) >= 0.05  # the wrong arm is called faster, with 95 % confidence
    assert share(one_shot(seed) < 1 for seed in range(TIMES)) >= 0.15
    # of the same executed time
    assert share(each.ratio.point < 1 for each in comparisons) < share(each.point < 1 for each in blocks)
