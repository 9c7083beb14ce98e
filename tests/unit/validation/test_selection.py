"""What stays in the race on the validation split, and what the controller has to beat."""

import numpy as np
import pytest

from chronostat.errors import MeasurementError
from chronostat.records import Budget, Setting
from chronostat.validation.policies import Measurements, Mix, Pool
from chronostat.validation.selection import Rivals, Selection, finalists, full_ms, latency_means, select_rivals
from stand_ins.runs import fail_under

MEANS = [Budget(kind="mean", fraction=fraction) for fraction in (0.3, 0.5)]


def make_pool(accuracies, latencies_ms, n=20):
    """Each setting is right on its share of n samples, and takes the same on all."""
    quality = np.array([[row < round(accuracy * n) for accuracy in accuracies] for row in range(n)], dtype=float)
    return Pool(quality=quality, latency_ms=np.tile(np.array(latencies_ms, dtype=float), (n, 1)), rows=np.arange(n))


def test_the_denominator_is_the_median_of_full():
    pool = Pool(
        quality=np.ones((3, 2)),
        latency_ms=np.array([[10.0, 1.0], [400.0, 1.0], [20.0, 1.0]]),
        rows=np.arange(3),
    )
    assert full_ms(pool) == 20


def test_disturbances_raise_no_denominator():
    # full 10, 20, 30 undisturbed, 90 twice disturbed: the median of what counts is 20, that of all would be 30
    full_ms_each, other_ms = [10.0, 90.0, 20.0, 90.0, 30.0], [8.0] * 5
    latency_ms = np.array([full_ms_each, other_ms]).T
    disturbed = tuple({0: "stolen"} if ms == 90 else {} for ms in full_ms_each)
    pool = Pool(quality=np.ones((5, 2)), latency_ms=latency_ms, rows=np.arange(5), disturbed=disturbed)
    assert full_ms(pool) == 20
    table = Measurements(space=None, metric="prefill_ms")
    table.latency_ms, table.disturbed = list(latency_ms), list(disturbed)
    assert latency_means(table, 2.0) == pytest.approx((1 + 2 / 20, (8 + 2) / 20))  # mean of full: (10 + 20 + 30) / 3


def test_finalists_are_full_the_fastest_the_hull_and_the_best_of_each_budget():
    # of full:         1    .29   .28   .26   .25   .45    .2    .9
    latencies_ms = [100.0, 29.0, 28.0, 26.0, 25.0, 45.0, 20.0, 90.0]
    accuracies = [0.9, 0.6, 0.55, 0.5, 0.45, 0.4, 0.1, 0.2]
    # budget .3: 1, 2 and 3 are the three best; .5: the same three beat 5; hull: 6, 4?, 1, 0
    # 4 at (25, .45) lies above the line from 6 (20, .1) to 1 (29, .6): .1 + 5 / 9 * .5 = .378; so it stays as well
    assert finalists(make_pool(accuracies, latencies_ms), MEANS) == [0, 1, 2, 3, 4, 6]


def test_a_setting_just_above_a_budget_stays_in_the_race():
    # the limit of .3 is 30 ms; 31 ms are within its slack of 5 %, 32 are not; both are on no hull
    pool = make_pool([1.0, 1.0, 0.3, 0.3], [100.0, 20.0, 31.0, 32.0])
    assert finalists(pool, MEANS[:1]) == [0, 1, 2]


def test_where_nobody_keeps_a_budget_full_and_the_fastest_stay():
    pool = make_pool([0.9, 0.5, 0.4], [100.0, 80.0, 90.0])
    assert finalists(pool, [Budget(kind="mean", fraction=0.1)]) == [0, 1]
    assert finalists(pool, [Budget(kind="deadline", fraction=0.1)]) == [0, 1]


def test_the_hull_has_no_vertex_below_a_mix_of_two_others():
    # (20, .2), (60, .5), (100, .9): the middle one lies below the line, .2 + .7 / 2 = .55
    assert finalists(make_pool([0.9, 0.5, 0.2], [100.0, 60.0, 20.0]), [Budget(kind="mean", fraction=0.1)]) == [0, 2]
    # (20, .2), (60, .6), (100, .9): above it
    assert finalists(make_pool([0.9, 0.6, 0.2], [100.0, 60.0, 20.0]), [Budget(kind="mean", fraction=0.1)]) == [0, 1, 2]


def test_settings_that_rivals_use():
    rivals = {
        MEANS[0]: Rivals(fixed=4, accuracy=0.5, mix=Mix(low=2, high=7, share=0.5)),
        MEANS[1]: Rivals(fixed=2, accuracy=0.6, mix=None),
    }
    selection = Selection(samples=8, rivals=rivals, full_ms=1.0, latency_means=(1.0,))
    assert selection.settings == [2, 4, 7]


def test_latency_means_are_over_full_on_the_same_samples(stand_in):
    with stand_in.session() as session:
        table = Measurements(space=session.space, metric=session.metric)
    nan = float("nan")
    table.latency_ms = [np.array(row) for row in ([100.0, 30.0, nan], [80.0, 50.0, nan], [90.0, nan, nan])]
    table.disturbed = [{}, {}, {}]
    # full: (90 + 2) / 90; the second: ((30 + 50) / 2 + 2) / 90, over the median of 100 and 80; the third never ran
    assert latency_means(table, 2.0) == pytest.approx((92 / 90, 42 / 90, nan), nan_ok=True)
    # a disturbed one is left out of its mean, unless most of them were
    table.disturbed = [{}, {1: "stolen CPU time 20 ms"}, {}]
    assert latency_means(table, 2.0) == pytest.approx((92 / 90, 32 / 90, nan), nan_ok=True)
    table.disturbed = [{1: "stolen CPU time 20 ms"}] * 3
    assert latency_means(table, 2.0) == pytest.approx((92 / 90, 42 / 90, nan), nan_ok=True)


@pytest.mark.parametrize("budget", [Budget(kind="mean", fraction=0.1), Budget(kind="deadline", fraction=0.1)])
def test_the_rival_of_a_budget_that_nobody_keeps_is_the_fastest(stand_in, budget):
    with stand_in.session() as session:
        rivals = select_rivals(session, [budget]).rivals[budget]
        cheapest = session.space.settings[rivals.fixed]
    assert cheapest == Setting(moe_topk=1, block_skip=(1, 2))
    assert rivals.mix is None


def test_after_a_while_only_finalists_run(stand_in):
    # under all settings a sample takes 6 * 6 + 2 * (16 + 14 + 12 + 10.5 + 8 + 7) = 171 ms, 8 of them over .4 of 2 s
    with stand_in.session("validation.select_seconds=2", "validation.select_samples=10") as session:
        selection = select_rivals(session, MEANS)
        executed = [len(trial.executions) for trial in session.store.trials("select")]
    assert executed[:8] == [6] * 8
    assert 2 <= executed[8] < 6
    assert selection.samples == 10


def test_a_setting_that_keeps_failing_leaves_the_race(stand_in, monkeypatch):
    failing = Setting(moe_topk=1, block_skip=())
    with stand_in.session() as session:
        fail_under(monkeypatch, session, failing)
        selection = select_rivals(session, MEANS)
        position = session.space.index(failing)
        ran = [e.setting for trial in session.store.trials("select") for e in trial.executions]
    assert ran.count(failing) == 3
    assert selection.samples == 8
    assert selection.taken_out == (failing,)
    assert position not in selection.settings
    assert selection.latency_means[position] != selection.latency_means[position]  # there is none
    assert stand_in.store().metadata["taken_out"] == {str(failing): "RuntimeError: out of memory"}


def test_what_training_took_out_is_not_executed(stand_in):
    out = Setting(moe_topk=2, block_skip=(1, 2))
    with stand_in.session() as session:
        selection = select_rivals(session, MEANS, taken_out=[out])
        ran = {e.setting for trial in session.store.trials("select") for e in trial.executions}
    assert out not in ran
    assert len(ran) == 5
    assert selection.taken_out == (out,)


def test_full_that_keeps_failing_stops_the_validation(stand_in, monkeypatch):
    with stand_in.session() as session:
        fail_under(monkeypatch, session, session.space.full)
        with pytest.raises(MeasurementError, match="full failed 3 times in a row"):
            select_rivals(session, MEANS)


def test_failures_leave_out_their_samples_only(stand_in, monkeypatch):
    with stand_in.session() as session:
        fail_under(monkeypatch, session, Setting(moe_topk=1, block_skip=()), samples={"validation-3"})
        assert select_rivals(session, MEANS).samples == 7
