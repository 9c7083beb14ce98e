"""Verdicts from paired values: by hand, and what is left out."""

import numpy as np
import pytest

from chronostat.records import Budget, Estimate
from chronostat.validation.policies import Played
from chronostat.validation.verdicts import Pairs, Verdicts, accuracy_verdict, pairs_of, self_comparison

NAME = (Budget(kind="mean", fraction=0.4), "full")


def played(quality, charged_ms, disturbed=None):
    n = len(quality)
    return Played(
        weights=np.ones(1),
        settings=np.zeros((1, n), dtype=np.intp),
        quality=np.array([quality], dtype=float),
        charged_ms=np.array([charged_ms], dtype=float),
        disturbed=disturbed or (None,) * n,
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.02, 0.02, "same"),
        (0.005, 0.015, "same"),
        (-0.01, 0.2, "undecided"),
        (float("nan"), 0.2, "invalid"),
    ],
)
def test_accuracy(low, high, verdict):
    assert accuracy_verdict(Estimate(point=0.01, low=low, high=high), 0.02) == verdict


def test_pairs_leave_out_what_was_disturbed_on_either_side_for_latency_only():
    ours = played([1, 0, 1, 1], [10, 20, 30, 40], (None, "stolen CPU time 20 ms", None, None))
    other = played([0, 0, 1, 0], [20, 20, 60, 40], (None, None, "stolen CPU time 30 ms", None))
    pairs = pairs_of(ours, other, np.ones(4, dtype=bool))
    assert pairs.gains.tolist() == [1, 0, 0, 1]
    assert pairs.log_ratios.tolist() == pytest.approx([np.log(0.5), 0])  # the first and the last
    assert pairs.left_out == {"stolen CPU time": 2}
    few = pairs_of(ours, other, np.array([True, True, False, False]))
    assert (few.gains.tolist(), few.left_out) == ([1, 0], {"stolen CPU time": 1})
    assert few.log_ratios.tolist() == pytest.approx([np.log(0.5)])


def make_pairs(gain, ratio, n=100, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    gains = (rng.random(n) < abs(gain)).astype(float) * np.sign(gain)
    return Pairs(gains=gains, log_ratios=np.log(ratio) + rng.normal(0, noise, n), left_out={})


def verdicts(stop, margin=0.02):
    return Verdicts(metric="prefill_ms", stop=stop, margin=margin, seed=0)


@pytest.mark.parametrize(("n", "verdict"), [(2, "undecided"), (20, "undecided"), (182, "undecided"), (184, "same")])
def test_a_few_samples_without_a_difference_do_not_say_that_accuracy_is_the_same(n, verdict):
    # 1 - .025 ** (1 / 183) = .0200: fewer samples can miss more than a margin of 2 points
    state = verdicts("fixed")
    compared = {NAME: make_pairs(0, 1.0, n=n)}
    state.look(compared, share=1.0, final=True)
    assert state.comparison(NAME, compared[NAME])[1] == verdict


def test_what_comes_after_a_verdict_leaves_it_an_interval_that_says_it():
    # gains that turn: 60 of 1, then 120 of -1, whose interval leaves nothing of the first one
    state, first = verdicts("decided"), np.ones(60)
    both = np.concatenate([first, -np.ones(120)])
    slower = np.log(np.concatenate([np.full(60, 1.5), np.full(120, 0.5)])) + np.linspace(0, 0.01, 180)
    for gains in (first, both):
        pairs = Pairs(gains=gains, log_ratios=slower[: len(gains)], left_out={})
        state.look({NAME: pairs}, share=len(gains) / 180, final=gains is both)
    gain, accuracy, compared = state.comparison(NAME, pairs)
    assert (accuracy, compared.verdict) == ("better", "slower")
    assert gain.low > 0
    assert compared.ratio.low > 1.02
    assert gain.point == pytest.approx(-1 / 3)  # of all samples; the interval of the first look ends above it


@pytest.mark.parametrize("stop", ["fixed", "decided"])
@pytest.mark.parametrize(
    ("gain", "ratio", "accuracy", "latency"),
    [(0.5, 0.8, "better", "faster"), (-0.5, 1.3, "worse", "slower"), (0.0, 1.0, "same", "same")],
)
def test_clear_cases(stop, gain, ratio, accuracy, latency):
    judged = verdicts(stop)
    pairs = make_pairs(gain, ratio, n=300)
    judged.look({NAME: pairs}, share=1.0, final=True)
    _, of_accuracy, compared = judged.comparison(NAME, pairs)
    if stop == "decided" and gain == 0:
        accuracy = of_accuracy if of_accuracy in {"same", "undecided"} else "same"  # 300 are few for an anytime "same"
    assert (of_accuracy, compared.verdict) == (accuracy, latency)
    assert compared.pairs == 300
    assert compared.ratio.low <= ratio <= compared.ratio.high


def test_fixed_looks_once_at_the_end():
    judged = verdicts("fixed")
    pairs = make_pairs(0.5, 0.5)
    assert not judged.look({NAME: pairs}, share=0.5)
    assert judged.look({NAME: pairs}, share=1.0, final=True)


def test_decided_ends_early_and_keeps_its_verdict():
    judged = verdicts("decided")
    pairs = make_pairs(0.9, 0.5, n=40)
    assert judged.look({NAME: pairs}, share=0.4)
    reverse = Pairs(gains=-pairs.gains, log_ratios=-pairs.log_ratios, left_out={})
    both = Pairs(
        gains=np.concatenate([pairs.gains, reverse.gains]),
        log_ratios=np.concatenate([pairs.log_ratios, reverse.log_ratios]),
        left_out={},
    )
    judged.look({NAME: both}, share=1.0, final=True)
    _, accuracy, compared = judged.comparison(NAME, both)
    assert (accuracy, compared.verdict) == ("better", "faster")


def test_nothing_is_spent_on_a_look_that_can_show_nothing():
    """At 5 samples no interval has bounds; had that look taken its part of alpha, 8 would not be enough."""
    judged = verdicts("decided")
    for n, share in ((5, 0.5), (8, 0.6)):
        pairs = make_pairs(0.5, 0.5, n=n)
        judged.look({NAME: pairs}, share=share)
    assert judged.comparison(NAME, pairs)[2].verdict == "faster"


def test_looking_often_rarely_says_what_is_not_so():
    """Equal policies, looked at after every sample: the share of false verdicts stays below alpha."""
    wrong = 0
    for seed in range(60):
        judged = verdicts("decided", margin=0.0)
        whole = make_pairs(0.0, 1.0, n=120, noise=0.2, seed=seed)
        flips = np.random.default_rng(seed).choice([-1.0, 1.0], 120)
        for n in range(6, 121, 6):
            so_far = Pairs(gains=flips[:n], log_ratios=whole.log_ratios[:n], left_out={})
            judged.look({NAME: so_far}, share=n / 120)
        _, accuracy, compared = judged.comparison(NAME, whole)
        wrong += accuracy in {"better", "worse"} or compared.verdict in {"faster", "slower"}
    assert wrong <= 8  # 2 verdicts of at most 5 % each: 6 of 60


@pytest.mark.parametrize("stop", ["fixed", "decided"])
def test_nothing_left_is_invalid(stop):
    judged = verdicts(stop)
    pairs = Pairs(gains=np.ones(3), log_ratios=np.zeros(0), left_out={"stolen CPU time": 3})
    judged.look({NAME: pairs}, share=1.0, final=True)
    _, _, compared = judged.comparison(NAME, pairs)
    assert compared.verdict == "invalid"
    assert compared.flags == ("3 samples with disturbed executions left out", "no sample could be used")


def test_a_a_by_hand():
    first, second = np.full(8, 10.0), np.full(8, 10.1)
    compared = self_comparison(first, second, "prefill_ms", 0.02)
    assert compared.ratio.point == pytest.approx(1.01)
    assert (compared.verdict, compared.pairs) == ("same", 8)  # within 2 %


def test_latency_of_a_policy_leaves_out_what_was_disturbed_unless_most_of_it_was():
    few = played([1] * 4, [10, 90, 10, 10], (None, "stolen", None, None))
    assert few.timed.tolist() == [True, False, True, True]
    assert few.quantile_ms(0.95) == 10
    assert few.keeps(Budget(kind="mean", fraction=1.0), 10.0, np.ones(4, dtype=bool))
    most = played([1] * 4, [10, 90, 10, 10], (None, "stolen", "stolen", "stolen"))
    assert most.timed.all()
    assert most.quantile_ms(0.95) == 90
    assert not most.keeps(Budget(kind="mean", fraction=1.0), 10.0, np.ones(4, dtype=bool))
