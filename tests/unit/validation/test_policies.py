"""What policies did on measured samples: small tables, worked out by hand."""

import numpy as np
import pytest

from chronostat.compare.statistics import PairedBootstrap
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, Execution, StageTiming, Trial
from chronostat.validation.policies import Measurements, Played, Pool, score
from chronostat.validation.verdicts import pairs_of

SPACE = ActionSpace({"vision_tokens": (4, 2, 1)})
FULL, HALF, LEAST = range(3)
NAMES = [str(setting) for setting in SPACE.settings]
ALL = np.ones(4, dtype=bool)  # samples of the pool that can meet a limit


def mean(fraction):
    return Budget(kind="mean", fraction=fraction)


def deadline(fraction):
    return Budget(kind="deadline", fraction=fraction)


def make_pool(quality, latency_ms, disturbed=()):
    return Pool(
        quality=np.array(quality, dtype=float),
        latency_ms=np.array(latency_ms, dtype=float),
        rows=np.arange(len(quality)),
        disturbed=disturbed,
    )


@pytest.fixture
def pool():
    """Four samples; full is right on 3 of them and takes 40 ms on average, half 2 and 20, least 1 and 10."""
    return make_pool(
        quality=[[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]],
        latency_ms=[[40, 20, 10], [44, 22, 12], [36, 18, 8], [40, 20, 10]],
    )


def test_a_fixed_setting(pool):
    played = pool.fixed(HALF)
    assert played.accuracy.tolist() == [1, 0, 1, 0]
    assert played.mean_ms.tolist() == [20, 22, 18, 20]
    assert played.within(20).tolist() == [1, 0, 1, 1]
    assert played.shares(SPACE) == ((NAMES[HALF], 1.0),)


def test_a_controller_is_charged_what_choosing_cost(pool):
    played = pool.played(np.array([FULL, LEAST, HALF, LEAST]), np.array([1.0, 2.0, 0.5, 0.25]))
    assert played.accuracy.tolist() == [1, 0, 1, 0]
    assert played.mean_ms.tolist() == [41, 14, 18.5, 10.25]
    assert played.shares(SPACE) == ((NAMES[LEAST], 0.5), (NAMES[FULL], 0.25), (NAMES[HALF], 0.25))


def test_a_mix_is_the_expectation_of_its_coin(pool):
    mix = pool.mix(LEAST, HALF, 0.25)
    # .75 * least + .25 * half, sample by sample
    assert mix.accuracy.tolist() == [0.25, 0, 1, 0]
    assert mix.mean_ms.tolist() == [12.5, 14.5, 10.5, 12.5]
    assert mix.within(15).tolist() == [0.75] * 4  # least always is, half never
    assert mix.shares(SPACE) == ((NAMES[LEAST], 0.75), (NAMES[HALF], 0.25))


def test_quantiles_of_a_mix_are_those_of_all_that_it_may_do(pool):
    mix = pool.mix(LEAST, HALF, 0.25)
    # weight .75 each: 8, 10, 10, 12; weight .25 each: 18, 20, 20, 22; reached: .75 1.5 2.25 3 3.25 3.5 3.75 4
    assert mix.quantile_ms(0.5) == 10  # 2 of 4 are reached at the second 10
    assert mix.quantile_ms(0.75) == 12  # 3 of 4
    assert mix.quantile_ms(0.9) == 20  # 3.6 of 4
    assert mix.quantile_ms(0.95) == 22  # 3.8 of 4
    # with a share of 0 it is the low setting alone
    assert pool.mix(LEAST, HALF, 0.0).quantile_ms(0.95) == 12


def test_a_mean_budget_is_kept_up_to_the_limit_itself(pool):
    assert pool.fixed(HALF).keeps(mean(0.5), 20.0, ALL)
    assert not pool.fixed(HALF).keeps(mean(0.5), 19.99, ALL)
    assert pool.mix(LEAST, HALF, 0.5).keeps(mean(0.375), 15.0, ALL)


@pytest.mark.parametrize(("late", "kept"), [(0, True), (1, True), (2, False)])
def test_a_deadline_holds_for_19_of_20_requests(late, kept):
    latencies = [[90.0]] * late + [[10.0]] * (20 - late)
    played = make_pool([[1.0]] * 20, latencies).fixed(0)
    assert played.keeps(deadline(0.5), 10.0, np.ones(20, dtype=bool)) is kept  # 19 / 20 = .95
    assert played.quantile_ms(0.95) == (10 if kept else 90)


def test_the_denominator_is_the_median_of_full_where_it_counts():
    assert make_pool(np.ones((3, 2)), [[10.0, 1.0], [400.0, 1.0], [20.0, 1.0]]).full_ms == 20
    # 10, 20, 30 undisturbed, 90 twice disturbed: the median of what counts is 20, that of all would be 30
    full_ms = [10.0, 90.0, 20.0, 90.0, 30.0]
    disturbed = tuple({0: "stolen"} if ms == 90 else {} for ms in full_ms)
    assert make_pool(np.ones((5, 2)), [[ms, 8.0] for ms in full_ms], disturbed).full_ms == 20


def test_a_request_that_no_measured_setting_brings_in_time_is_unmeetable():
    nan = float("nan")  # not executed on that sample
    pool = make_pool(np.ones((4, 3)), [[40, 20, 10], [80, 41, nan], [nan, 21, 31], [90, nan, 30]])
    assert pool.can_meet(30.0).tolist() == [True, False, True, True]
    assert pool.can_meet(29.9).tolist() == [True, False, True, False]
    assert pool.can_meet(9.0).tolist() == [False] * 4


def test_unmeetable_requests_count_towards_no_policy_deadline():
    """19 requests take 10 ms and 5 ms, two 100 ms and 50 ms, one of the 19 only under the faster setting."""
    latency_ms = [[10.0, 5.0]] * 18 + [[20.0, 5.0]] + [[100.0, 50.0]] * 2
    pool = make_pool([[1.0, 0.0]] * 21, latency_ms)
    can = pool.can_meet(10.0)
    assert can.sum() == 19
    bootstrap = PairedBootstrap(21, seed=0)
    policies = {"controller": pool.fixed(1), "best fixed": pool.fixed(0)}
    scores = {
        name: score(name, played, deadline(0.5), 10.0, can, SPACE, bootstrap) for name, played in policies.items()
    }
    assert {each.unmeetable for each in scores.values()} == {2}
    assert scores["controller"].share_within.point == 1.0  # 19 of 19
    assert scores["best fixed"].share_within.point == pytest.approx(18 / 19)  # .947
    assert (scores["controller"].kept, scores["best fixed"].kept) == (True, False)
    assert all(each.samples == 21 for each in scores.values())  # as many were judged
    assert (scores["controller"].p95_ms, scores["best fixed"].p95_ms) == (
        5.0,
        20.0,
    )  # 18 of 19 are .947; 50 and 100 ms are of the two
    # the mean is over all: (18 * 10 + 20 + 2 * 100) / 21
    assert scores["best fixed"].mean_ms.point == pytest.approx(400 / 21)


def test_what_is_answered_to_unmeetable_requests_is_no_gain():
    """Of four requests two can be met; the controller is right on one of those and on both of the others."""
    pool = make_pool([[1, 0], [0, 0], [1, 0], [1, 0]], [[10.0, 5.0], [10.0, 5.0], [90.0, 50.0], [90.0, 50.0]])
    can, bootstrap = pool.can_meet(10.0), PairedBootstrap(4, seed=0)
    ours = pool.fixed(0)
    own = score("controller", ours, deadline(0.5), 10.0, can, SPACE, bootstrap)
    rival = score("best fixed", pool.fixed(1), deadline(0.5), 10.0, can, SPACE, bootstrap, against=ours)
    assert (own.accuracy.point, rival.accuracy.point, rival.gain.point) == (0.5, 0.0, 0.5)
    assert pairs_of(ours, pool.fixed(1), can).gains.tolist() == [1.0, 0.0]


def test_where_no_request_can_be_met_no_policy_keeps_the_deadline():
    pool = make_pool([[1.0]] * 4, [[50.0]] * 4)
    assert not pool.fixed(0).keeps(deadline(0.1), 10.0, pool.can_meet(10.0))
    # a mean has no request that does not count
    assert not pool.fixed(0).keeps(mean(0.1), 10.0, pool.can_meet(10.0))


def trial(*results):
    """Executions of the settings in the order of the space: (quality, prefill_ms), or None for a failure."""
    executions = [
        Execution(
            sample_id="a",
            split="test",
            setting=setting,
            quality=result and result[0],
            timing=result
            and StageTiming(source="measured", total_ms=99.0, new_tokens=1, decode_steps=0, prefill_ms=result[1]),
            invalid=None if result else "out of memory",
        )
        for setting, result in zip(SPACE.settings, results, strict=False)
    ]
    return Trial(phase="test", index=0, sample_id="a", executions=tuple(reversed(executions)))


def measured(*trials):
    table = Measurements(space=SPACE, metric="prefill_ms")
    for each in trials:
        table.add(each)
    return table


def test_measurements_are_in_the_order_of_the_space():
    table = measured(trial((1.0, 40.0), (0.5, 20.0), (0.0, 10.0)))
    assert table.quality[0].tolist() == [1, 0.5, 0]
    assert table.latency_ms[0].tolist() == [40, 20, 10]


def test_a_failure_leaves_its_sample_out_where_it_is_compared_and_only_there():
    table = measured(
        trial((1.0, 40.0), (1.0, 20.0), (1.0, 10.0)),
        trial((1.0, 40.0), None, (0.0, 10.0)),
        trial((None, 40.0), (1.0, 20.0), (1.0, 10.0)),  # an answer without a score
        trial((0.0, 40.0), (0.0, 20.0)),  # the last setting did not run
    )
    assert table.complete([FULL, HALF]).rows.tolist() == [0, 3]
    assert table.complete([LEAST]).rows.tolist() == [0, 1, 2]
    assert table.complete(range(3)).rows.tolist() == [0]
    assert table.complete([FULL, LEAST]).fixed(LEAST).accuracy.tolist() == [1, 0]
    assert len(table.complete([HALF]).rows) == 3
    assert len(measured(trial(None, None, None)).complete([FULL])) == 0


def test_a_score_and_the_gain_over_it(pool):
    bootstrap = PairedBootstrap(4, seed=0)
    ours = pool.played(np.array([FULL, FULL, HALF, LEAST]), 1.0)
    scored = score("best fixed", pool.fixed(HALF), mean(0.6), 24.0, ALL, SPACE, bootstrap, against=ours)
    assert (scored.policy, scored.budget_ms, scored.samples, scored.kept) == ("best fixed", 24.0, 4, True)
    assert scored.accuracy.point == 0.5
    assert scored.mean_ms.point == 20
    assert (scored.p50_ms, scored.p95_ms) == (20, 22)
    assert scored.share_within.point == 1
    assert scored.gain.point == 0.25  # (1 + 1 + 1 + 0) / 4 less 2 / 4
    own = score("controller", ours, mean(0.6), 24.0, ALL, SPACE, bootstrap)
    assert own.gain is None
    assert own.mean_ms.point == 29  # (41 + 45 + 19 + 11) / 4
    assert not own.kept


def test_the_gain_is_paired():
    # both are right on half of the samples, and on the same ones: all doubt that remains about the difference is of
    # samples that a hundred did not show, 1 - .025 ** (1 / 100) = .0362
    right = np.tile([1.0, 0.0], 50)
    pool = make_pool(np.stack([right, right], axis=1), np.full((100, 2), 10.0))
    bootstrap, can = PairedBootstrap(100, seed=0), np.ones(100, dtype=bool)
    scored = score("best fixed", pool.fixed(1), mean(1.0), 10.0, can, SPACE, bootstrap, against=pool.fixed(0))
    assert scored.accuracy.high - scored.accuracy.low > 0.1
    assert (scored.gain.point, scored.gain.low, scored.gain.high) == pytest.approx((0, -0.0362, 0.0362), abs=1e-4)


def test_samples_that_are_all_alike_leave_room_for_those_that_were_not_seen():
    pool = make_pool(np.ones((100, 2)), np.full((100, 2), 10.0))
    bootstrap, can = PairedBootstrap(100, seed=0), np.ones(100, dtype=bool)
    scored = score("best fixed", pool.fixed(1), mean(1.0), 10.0, can, SPACE, bootstrap)
    for share in (scored.accuracy, scored.share_within):  # .025 ** (1 / 100)
        assert (share.point, share.low, share.high) == pytest.approx((1, 0.9638, 1), abs=1e-4)


def test_worlds_of_a_policy_weigh_as_they_should():
    played = Played(
        weights=np.array([0.25, 0.75]),
        settings=np.array([[FULL, FULL], [HALF, LEAST]]),
        quality=np.array([[1.0, 0.0], [0.0, 1.0]]),
        charged_ms=np.array([[40.0, 40.0], [20.0, 10.0]]),
        disturbed=(None, None),
    )
    assert played.accuracy.tolist() == [0.25, 0.75]
    assert played.mean_ms.tolist() == [25, 17.5]
    assert played.shares(SPACE) == ((NAMES[HALF], 0.375), (NAMES[LEAST], 0.375), (NAMES[FULL], 0.25))
