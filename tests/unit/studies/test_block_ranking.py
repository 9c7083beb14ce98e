"""Ranking decoder blocks: the arithmetic by hand, and whole rankings on the stand-in, killed ones among them."""

import dataclasses
import json
import math
from itertools import combinations

import pytest

import chronostat.knobs.block_skip
from chronostat.cli.actions.rank_blocks import doubt_of, scores_table
from chronostat.compare.statistics import PairedBootstrap
from chronostat.errors import ConfigError, KnobError, MeasurementError, StoreError, UnlikeConditions
from chronostat.knobs.block_limits import BlockLimits
from chronostat.knobs.block_skip import BlockSkip
from chronostat.records import Execution, Setting, StageTiming, Trial
from chronostat.runs.session import begin_with, reopen_with
from chronostat.runs.workload import BareModel
from chronostat.studies.block_ranking.importance import (
    RANKING,
    Plan,
    load_ranking,
    score_blocks,
    score_kept,
    spent_s,
    without,
)
from chronostat.studies.block_ranking.ranking import check_plan, rank, ranking_workload, refused_blocks
from stand_ins.runs import fail_under, interrupt_after, stand_in

__all__ = ["stand_in"]


def execution(setting, quality, prefill_ms, sample="a"):
    timing = StageTiming(
        source="measured", total_ms=prefill_ms + 10, new_tokens=1, decode_steps=0, prefill_ms=prefill_ms
    )
    return Execution(
        sample_id=sample, split="validation", setting=setting, timing=timing, quality=quality, preprocess_ms=5.0
    )


def failed(setting):
    return Execution(sample_id="a", split="validation", setting=setting, timing=None, invalid="out of memory")


def trial(index, *executions):
    return Trial(phase="rank", index=index, sample_id="a", executions=executions)


def measured(*rows):
    """Trials from rows of {blocks left out: (quality, prefill_ms)}."""
    return [
        trial(i, *(execution(without(out), *numbers) for out, numbers in row.items())) for i, row in enumerate(rows)
    ]


def test_the_loss_for_a_saved_millisecond():
    trials = measured(
        {(): (1.0, 100.0), (0,): (0.0, 76.0), (1,): (1.0, 89.5)},
        {(): (1.0, 110.0), (0,): (1.0, 84.0), (1,): (1.0, 98.5)},
    )
    second, first = score_blocks(trials, (), [0, 1], "prefill_ms", seed=0)[::-1]
    assert (first.block, second.block) == (1, 0)
    # block 0: 1 - 0 and 1 - 1, mean 0.5; 24 and 26 ms, mean 25
    assert (second.loss.point, second.saved_ms.point, second.loss_per_ms.point) == (0.5, 25, 0.5 / 25)
    # Student's t with 1 degree of freedom: tan(0.475 pi) = 12.706; the standard error is 1
    assert (second.saved_ms.low, second.saved_ms.high) == pytest.approx((25 - 12.706, 25 + 12.706), abs=1e-3)
    # of two samples the resamples are (a, a), (a, b) and (b, b): 1 / 24, 0.5 / 25 and 0 / 26
    assert (second.loss_per_ms.low, second.loss_per_ms.high) == (0, 1 / 24)
    # block 1: no loss; 10.5 and 11.5 ms
    assert (first.loss_per_ms.point, first.saved_ms.point, first.samples) == (0, 11, 2)


def test_a_block_whose_saved_time_may_be_none_is_undecided():
    trials = measured({(): (1, 100), (0,): (1, 90)}, {(): (1, 100), (0,): (1, 96)})
    (score,) = score_blocks(trials, (), [0], "prefill_ms", seed=0)
    assert (
        score.saved_ms.point == 7
    )  # (10 + 4) / 2; both save, but two such samples can come from a block that does not
    assert (score.saved_ms.low, score.saved_ms.high) == pytest.approx((7 - 3 * 12.706, 7 + 3 * 12.706), abs=3e-3)
    assert score.loss_per_ms is None


def rows(**blocks):
    """Two samples under full at 100 ms, and with each block out: {name: (loss, first saved, second saved)}."""
    made = []
    for which in (1, 2):
        row = {(): (1.0, 100.0)}
        for name, numbers in blocks.items():
            row[(int(name[1:]),)] = (1.0 - numbers[0], 100.0 - numbers[which])
        made.append(row)
    return measured(*made)


def order_of(trials, candidates):
    return [score.block for score in score_blocks(trials, (), candidates, "prefill_ms", seed=0)]


def test_blocks_that_lose_nothing_come_first_and_of_those_the_one_that_saves_most():
    # losses a millisecond: 0, 0, 0.5 / 10, 0.2 / 20; a gain counts as no loss
    assert order_of(rows(b0=(0, 4.9, 5.1), b1=(-0.5, 8, 8), b2=(0.5, 10, 10), b3=(0.2, 20, 20)), range(4)) == [
        1,
        0,
        3,
        2,
    ]


def test_an_undecided_block_is_taken_to_save_what_blocks_save():
    # b0 and b3 save (-2 + 6) / 2 = 2 ms or none; on average blocks save (2 + 10 + 10 + 2) / 4 = 6 ms
    # prices: b0 0.3 / 6 = 0.05, b1 1.0 / 10 = 0.1, b2 0, b3 0: of the last two b2 is decided
    trials = rows(b0=(0.3, -2, 6), b1=(1.0, 10, 10), b2=(0.0, 10, 10), b3=(0.0, -2, 6))
    assert order_of(trials, range(4)) == [2, 3, 0, 1]


def test_a_block_whose_removal_takes_more_time_comes_last():
    assert order_of(rows(b0=(0.0, -3.4, -3.6), b1=(1.0, 5, 5)), range(2)) == [1, 0]


def test_samples_without_both_are_left_out():
    good = measured({(): (1, 100), (0,): (1, 90)})
    bad = trial(1, execution(without(()), 1, 500), failed(without([0])))
    nothing = trial(2, execution(without(()), None, 500), execution(without([0]), None, 1))
    (score,) = score_blocks([*good, bad, nothing], (), [0, 1], "prefill_ms", seed=0)
    assert (score.block, score.samples, score.saved_ms.point) == (0, 1, 10)
    assert math.isnan(score.saved_ms.low)
    assert score.loss_per_ms is None


def test_samples_that_the_machine_disturbed_are_left_out_unless_they_are_more_than_half():
    trials = measured(*({(): (1, 100), (0,): (1, 90)} for _ in range(4)))
    for index in (0, 1):
        shaken = dataclasses.replace(trials[index].executions[0], timing=slow(500), disturbed="waited 400 ms for a CPU")
        trials[index] = dataclasses.replace(trials[index], executions=(shaken, trials[index].executions[1]))
    (score,) = score_blocks(trials, (), [0], "prefill_ms", seed=0)
    assert (score.samples, score.disturbed, score.saved_ms.point) == (2, 0, 10)
    (score,) = score_blocks(trials[:3], (), [0], "prefill_ms", seed=0)
    assert (score.samples, score.disturbed) == (3, 2)
    assert score.saved_ms.point == pytest.approx((410 + 410 + 10) / 3)


@pytest.mark.slow
def test_disturbed_samples_that_had_to_be_used_are_told_whichever_round_they_were_in(stand_in):
    ranking = ranked(stand_in, plan_for("greedy"))
    assert doubt_of(ranking) is None
    first, last = ranking.rounds
    shaken = dataclasses.replace(first[2], disturbed=3)
    assert "disturbed 3 of 4 samples" in doubt_of(
        dataclasses.replace(ranking, rounds=((*first[:2], shaken, *first[3:]), last))
    )
    kept = dataclasses.replace(ranking.kept[1], disturbed=4)
    assert "disturbed 4 of 4 samples, too many to leave out" in doubt_of(
        dataclasses.replace(ranking, rounds=((shaken,), last), kept=(ranking.kept[0], kept))
    )


def slow(prefill_ms):
    return execution(without(()), 1, prefill_ms).timing


def test_later_rounds_compare_with_what_was_out_already():
    trials = measured(
        {(): (1, 100), (2,): (0.5, 80), (1, 2): (0.0, 70)}, {(): (1, 100), (2,): (0.5, 80), (1, 2): (0.0, 70)}
    )
    (score,) = score_blocks(trials, [2], [1], "prefill_ms", seed=0)
    assert (score.loss.point, score.saved_ms.point, score.loss_per_ms.point) == (0.5, 10, 0.05)


def test_what_is_left_when_some_blocks_are_kept():
    trials = measured({(): (1, 100), (1, 3): (1, 50)}, {(): (1, 200), (1, 3): (0, 130)})
    kept = score_kept(trials, [3, 1], 8, "prefill_ms", seed=0, fresh=True)
    # 180 ms of 300; the resamples give 50 / 100, 180 / 300 and 130 / 200
    assert (kept.keep, kept.skipped, kept.loss.point) == (6, (1, 3), 0.5)
    assert (kept.ratio.point, kept.ratio.low, kept.ratio.high) == (0.6, 0.5, 0.65)
    assert kept.disturbed == 0
    assert score_kept(trials, [0], 8, "prefill_ms", seed=0, fresh=True) is None
    shaken = [
        dataclasses.replace(t, executions=tuple(dataclasses.replace(e, disturbed="waited") for e in t.executions))
        for t in trials
    ]
    assert score_kept(shaken, [3, 1], 8, "prefill_ms", seed=0, fresh=True) == dataclasses.replace(kept, disturbed=2)


def test_the_ratio_of_means_is_paired():
    values = PairedBootstrap(3, seed=0)
    import numpy as np

    denominators = np.array([1.0, 10.0, 100.0])
    ratio = values.ratio(3 * denominators, denominators)
    assert (ratio.point, ratio.low, ratio.high) == (3, 3, 3)
    assert math.isnan(PairedBootstrap(1, seed=0).ratio(denominators[:1], denominators[:1]).low)


def test_time_that_was_spent_is_that_of_the_requests():
    # 5 ms of preprocessing and 10 + 90 ms of generate(); a failed execution has no latency
    assert spent_s([trial(0, execution(without(()), 1, 90), failed(without([0])))]) == 0.105


# --- whole rankings on the stand-in: full 22 ms of prefill, each of the 4 blocks 4 ms of it


def plan_for(method="one-at-a-time", samples=4, seconds=60.0, keep=(3, 2)):
    return Plan(method=method, samples=samples, seconds=seconds, keep=keep, seed=0)


def begun(stand, plan, name="run"):
    vlm = BareModel(model=stand.model, name="molmo-like")
    workload = ranking_workload(stand.config(), vlm, stand.batches)
    return begin_with(
        workload,
        run_dir=stand.folder / name,
        command="chronostat rank-blocks",
        clock=stand.clock,
        ranking=dataclasses.asdict(plan),
    )


def ranked(stand, plan, name="run"):
    with begun(stand, plan, name) as session:
        return rank(session, plan)


def settings_of(trial):
    return {str(each.setting) for each in trial.executions}


def test_one_block_after_the_other(stand_in):
    ranking = ranked(stand_in, plan_for())
    assert sorted(ranking.order) == [0, 1, 2, 3]
    (scores,) = ranking.rounds
    for score in scores:
        # every block takes 3 ms and 2 experts of 0.5 ms
        assert (score.saved_ms.point, score.saved_ms.low, score.saved_ms.high) == (4, 4, 4)
        assert score.loss_per_ms.point == pytest.approx(score.loss.point / 4)
        assert score.samples == 4
    assert [score.block for score in scores] == list(ranking.order)
    trials = stand_in.store().trials("rank")
    singles = {"block_skip=-", *(f"block_skip={block}," for block in range(4))}
    assert [settings_of(trial) for trial in trials[:4]] == [singles] * 4
    # the sets that are kept: 3 and 2 of 4 blocks, on the next 4 of 10 samples
    first, second = ranking.order[:1], ranking.order[:2]
    assert [settings_of(trial) for trial in trials[4:]] == [
        {"block_skip=-", str(without(first)), str(without(second))}
    ] * 4
    assert [kept.skipped for kept in ranking.kept] == [first, tuple(sorted(second))]
    assert [kept.ratio.point for kept in ranking.kept] == pytest.approx([18 / 22, 14 / 22])
    assert all(kept.fresh for kept in ranking.kept)
    assert {t.sample_id for t in trials[:4]} & {t.sample_id for t in trials[4:]} == set()


def test_greedy_takes_the_best_one_out_for_good(stand_in):
    ranking = ranked(stand_in, plan_for("greedy"))
    assert len(ranking.rounds) == 2  # until 2 of 4 are left
    taken = [scores[0].block for scores in ranking.rounds]
    assert list(ranking.order[:2]) == taken
    assert {score.block for score in ranking.rounds[1]} == {0, 1, 2, 3} - {taken[0]}
    assert [score.block for score in ranking.rounds[1]][1:] == list(ranking.order[2:])
    second = stand_in.store().trials("rank")[4]
    others = [without([taken[0], block]) for block in range(4) if block != taken[0]]
    assert settings_of(second) == {"block_skip=-", str(without(taken[:1])), *map(str, others)}
    assert all(score.saved_ms.point == 4 for scores in ranking.rounds for score in scores)


def test_executions_are_counted_and_stored(stand_in):
    ranked(stand_in, plan_for())
    store = stand_in.store()
    stored = sum(len(trial.executions) for trial in store.trials("rank"))
    # 4 samples under 5 settings, 4 under 3
    assert store.metadata["phases"]["rank"]["generate_calls"] == stored == 4 * 5 + 4 * 3
    assert store.metadata["selfcheck"]["knobs"]["block_skip"]["values"] == {f"{block},": 3 for block in range(4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("greedy", 22),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("one-at-a-time", 22), ("one-at-a-time", 1), ("greedy", 9), ("greedy", 36))
        ),
    ],
)
def test_a_ranking_that_was_killed_comes_to_the_same_end(stand_in, monkeypatch, method, calls):
    plan = plan_for(method)
    whole = ranked(stand_in, plan, "whole")
    with begun(stand_in, plan) as session, monkeypatch.context() as pressed:
        interrupt_after(pressed, stand_in.model, calls)
        with pytest.raises(KeyboardInterrupt):
            rank(session, plan)
    store = stand_in.store()
    before = store.trials("rank")
    assert not store.holds(RANKING)
    workload = ranking_workload(stand_in.config(), BareModel(model=stand_in.model, name="molmo-like"), stand_in.batches)
    with reopen_with(workload, store, clock=stand_in.clock) as session:
        resumed = rank(session, plan)
    assert resumed == whole
    after = store.trials("rank")
    assert after[: len(before)] == before
    assert [trial.index for trial in after] == [trial.index for trial in stand_in.store("whole").trials("rank")]


def test_the_box_of_time_ends_a_round_but_not_before_two_samples(stand_in):
    few = ranked(stand_in, plan_for(seconds=0.001))
    assert [score.samples for score in few.rounds[0]] == [2] * 4
    # a sample takes 38 + 4 * 31 = 162 ms (two tokens; a block 4 ms in each of both passes, so 30 ms without one):
    # half of 0.7 s are over after the third
    some = ranked(stand_in, plan_for(seconds=0.7), "some")
    assert [score.samples for score in some.rounds[0]] == [3] * 4


def test_a_ranking_of_another_model_is_refused(stand_in):
    ranking = ranked(stand_in, plan_for())
    folder = stand_in.store().folder
    assert load_ranking(folder, stand_in.model) == ranking
    assert load_ranking(folder / RANKING, stand_in.model) == ranking
    stand_in.model.lm_head.weight.data += 1
    with pytest.raises(
        UnlikeConditions,
        match=f"belongs to model {ranking.fingerprint} .molmo-like., but this one is another: its weights differ",
    ):
        load_ranking(folder, stand_in.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "first"}, "as a ranking of blocks: order: "),
        ({"plan": {"method": "best"}}, "as a ranking of blocks: plan"),
        (None, "cannot read .*ranking.json: "),
    ],
)
def test_damaged_rankings(stand_in, change, message):
    ranking = ranked(stand_in, plan_for())
    file = stand_in.store().folder / RANKING
    file.write_text("{" if change is None else json.dumps({**ranking.to_json(), **change}))
    with pytest.raises(StoreError, match=message):
        load_ranking(file, stand_in.model)
    with pytest.raises(
        StoreError, match=r"is no ranking: .*none.json does not exist; name what chronostat rank-blocks"
    ):
        load_ranking(file.with_name("none.json"), stand_in.model)


def refuse_block(monkeypatch, *refused):
    check = BlockSkip.check

    def stricter(self, value):
        check(self, value)
        if set(refused) & set(value):
            raise self.refuse(value, "blocks that no other one reads from")

    monkeypatch.setattr(BlockSkip, "check", stricter)


def test_blocks_that_cannot_be_skipped_are_listed_with_the_reason(stand_in, monkeypatch):
    refuse_block(monkeypatch, 1)
    ranking = ranked(stand_in, plan_for())
    assert sorted(ranking.order) == [0, 2, 3]
    assert list(ranking.refused) == [1]
    assert "blocks that no other one reads from" in ranking.refused[1]
    assert load_ranking(stand_in.store().folder, stand_in.model) == ranking


def require_source(monkeypatch, *, sources, dependents):
    """As in models whose blocks hand indices on: a dependent needs one of the sources before it."""
    limits = BlockLimits(sources=frozenset(sources), dependents=frozenset(dependents))
    monkeypatch.setattr(chronostat.knobs.block_skip, "block_limits", lambda _: limits)
    return limits


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "one-at-a-time"])
def test_blocks_that_cannot_be_left_out_together_are_not(stand_in, monkeypatch, method):
    free = ranked(stand_in, plan_for(method, keep=(2,)), "free")
    first, second = free.kept[0].skipped
    others = [block for block in range(4) if block > second]
    limits = require_source(monkeypatch, sources=free.kept[0].skipped, dependents=others)
    ranking = ranked(stand_in, plan_for(method, keep=(2,)))
    for each in stand_in.store().trials("rank"):
        assert all(limits.objection(e.setting["block_skip"]) is None for e in each.executions)
    assert sorted(ranking.order) == [0, 1, 2, 3]
    assert ranking.order[0] == free.order[0]
    assert len(ranking.kept[0].skipped) == 2
    assert (first, second) != ranking.kept[0].skipped
    assert scores_table(ranking).row_count == 4


@pytest.mark.parametrize("method", ["greedy", "one-at-a-time"])
def test_more_blocks_than_can_be_left_out_together_are_refused_with_the_reason(stand_in, monkeypatch, method):
    limits = require_source(monkeypatch, sources=[], dependents=[])
    pairs = {frozenset(pair) for pair in combinations(range(4), 2)}
    monkeypatch.setattr(
        type(limits), "objection", lambda _, skipped: "two of a pair" if frozenset(skipped) in pairs else None
    )
    with pytest.raises(
        KnobError,
        match=r"beside block_skip=\d, no other block can be left out \(two of a pair\); rank again with --keep 3 or m",
    ):
        ranked(stand_in, plan_for(method, keep=(2,)))


def test_a_model_without_a_block_to_skip_is_refused(stand_in, monkeypatch):
    refuse_block(monkeypatch, 0, 1, 2, 3)
    vlm = BareModel(model=stand_in.model, name="molmo-like")
    assert len(refused_blocks(vlm)) == 4
    with pytest.raises(KnobError, match="no block of this model can be skipped: block_skip = "):
        ranking_workload(stand_in.config(), vlm, stand_in.batches)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_for(keep=(4,)), "--keep 4: of the 4 blocks of this model 2 to 3 can be kept .2 can be skipped"),
        (plan_for(keep=(3, 1)), "--keep 1: of the 4 blocks of this model 2 to 3 can be kept"),
        (plan_for(samples=1), "--samples 1: an interval needs at least 2 samples"),
    ],
)
def test_plans_that_do_not_fit(plan, message):
    with pytest.raises(ConfigError, match=message):
        check_plan(plan, blocks=4, free=2)


def test_only_the_validation_split_is_looked_at(stand_in, monkeypatch):
    looked = set()
    split = stand_in.batches.split
    monkeypatch.setattr(stand_in.batches, "split", lambda name: (looked.add(name), split(name))[1])
    ranked(stand_in, plan_for())
    assert looked == {"validation"}
    assert {trial.sample_id.split("-")[0] for trial in stand_in.store().trials()} == {"validation"}


@pytest.mark.slow
def test_without_further_samples_the_same_ones_measure_what_is_kept(stand_in):
    ranking = ranked(stand_in, plan_for(samples=10))
    assert [kept.fresh for kept in ranking.kept] == [False, False]
    assert [kept.samples for kept in ranking.kept] == [10, 10]


def test_without_keep_nothing_more_is_measured(stand_in):
    ranking = ranked(stand_in, plan_for(keep=()))
    assert (ranking.kept, len(stand_in.store().trials("rank"))) == ((), 4)


def test_a_block_that_always_fails_stops_the_ranking_with_the_reason(stand_in, monkeypatch):
    plan = plan_for()
    with begun(stand_in, plan) as session:
        whole = Setting(moe_topk=2, block_skip=(3,))  # as the stand-in sees what is applied
        fail_under(monkeypatch, session, whole)
        with pytest.raises(
            MeasurementError, match="blocks 3 could not be ranked on 4 samples: RuntimeError: out of mem"
        ):
            rank(session, plan)


def test_trials_of_another_plan_are_refused(stand_in):
    plan = plan_for()
    with begun(stand_in, plan) as session:
        rank(session, plan)
        with pytest.raises(StoreError, match=r"stored trial 4 of .* belongs to another ranking"):
            rank(session, plan_for("greedy"))
