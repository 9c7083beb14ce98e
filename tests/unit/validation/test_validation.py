"""Validation on the stand-in: what is executed, what is compared, and what is refused before anything runs."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import chronostat.execution.trials
from chronostat.cli.actions.validate import _shortcomings
from chronostat.config import Config
from chronostat.control.controller import load_controller
from chronostat.control.controller_files import FOLDER
from chronostat.control.observer import Observer
from chronostat.errors import BudgetError, ConfigError, MeasurementError, UnlikeConditions
from chronostat.policy.rivals import rivals_of
from chronostat.records import Budget, Setting
from chronostat.runs.store import Validation
from chronostat.runs.training import train
from chronostat.validation import validate
from stand_ins.observing import delay
from stand_ins.runs import COUNTS, StandIn, fail_under, prefill_ms

pytestmark = pytest.mark.slow  # whole runs, trained and judged

FULL = {Setting(moe_topk=2, block_skip=())}
BRIEF = ("train.select_executions=0", "train.executions=1")  # where it does not matter what was learned
BUDGETS = [
    Budget(kind="mean", fraction=0.7),
    Budget(kind="mean", fraction=0.9),
    Budget(kind="deadline", fraction=0.8),
]


MODELS = []  # the one of ``judged``


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """One verdict and what it left, to be looked at only."""
    with pytest.MonkeyPatch.context() as patches:
        stand_in = StandIn(tmp_path_factory.mktemp("judged"), patches)
        with stand_in.session() as session:
            verdict = validate(session, train(session))
        MODELS[:] = [stand_in.model]
        yield verdict, stand_in.store()


def executions(store, phase):
    return sum(len(trial.executions) for trial in store.trials(phase))


def scores(verdict, budget):
    return {score.policy: score for score in verdict.scores if score.budget == budget}


def test_what_was_executed_is_what_was_counted(judged):
    verdict, store = judged
    phases = store.metadata["phases"]
    assert list(phases) == ["warmup", "calibrate", "select", "train", "test"]
    n = executions(store, "test")
    assert phases["test"]["generate_calls"] == n > 0
    assert (verdict.counted.executions, verdict.counted.generate_calls) == (n, n)


def test_the_verdict_is_stored_as_it_was_returned(judged):
    verdict, store = judged
    assert Validation.from_json(store.read_json("validation.json")) == verdict
    assert (verdict.metric, verdict.source) == ("prefill_ms", "measured")
    assert verdict.conditions.device == "cpu"


def test_each_test_sample_is_judged_once(judged):
    verdict, store = judged
    trials = store.trials("test")
    assert [trial.sample_id for trial in trials] == [f"test-{i}" for i in range(6)]
    assert verdict.samples == 6
    for trial in trials:
        ran = Counter(execution.setting for execution in trial.executions)
        twice = {setting for setting, n in ran.items() if n > 1}
        assert twice == (FULL if trial.index in {0, 5} else set())  # the noise floor, on every fifth sample
        assert {execution.split for execution in trial.executions} == {"test"}
    # what was learned from is of the other splits
    learned = {e.split for t in store.trials() if t.phase != "test" for e in t.executions}
    assert learned == {"train", "validation"}


def test_decisions_are_stored_and_each_is_measured_afresh(judged):
    _, store = judged
    decisions = store.decisions()
    assert Counter(decision.budget for decision in decisions) == dict.fromkeys(BUDGETS, 6)
    ran = {trial.sample_id: {e.setting for e in trial.executions} for trial in store.trials("test")}
    for decision in decisions:
        assert decision.setting in ran[decision.sample_id]
        assert (decision.split, decision.kind) == ("test", "odd" if decision.sample_id[-1] in "135" else "even")


def test_no_budget_is_always_the_first_one_to_be_decided(judged):
    _, store = judged
    assert len({decision.budget for decision in store.decisions()[:: len(BUDGETS)]}) > 1


def test_the_order_within_a_sample_varies(judged):
    _, store = judged
    assert len({trial.executions[0].setting for trial in store.trials("test")}) > 1


def test_scores_follow_from_what_was_stored(judged):
    verdict, store = judged
    results = {
        (trial.sample_id, e.setting): (e.quality, e.timing.prefill_ms)
        for trial in store.trials("test")
        for e in trial.executions
    }
    for budget in BUDGETS:
        mine = [d for d in store.decisions() if d.budget == budget]
        quality, latency_ms = zip(*(results[d.sample_id, d.setting] for d in mine), strict=True)
        score = scores(verdict, budget)["controller"]
        assert score.budget_ms == pytest.approx(budget.fraction * 22)  # the median of full is 22 ms
        assert score.accuracy.point == pytest.approx(np.mean(quality))
        assert score.mean_ms.point == pytest.approx(np.mean(latency_ms))
        within = np.array(latency_ms) <= budget.fraction * 22
        assert score.share_within.point == pytest.approx(within.mean())
        assert score.kept == (
            np.mean(latency_ms) <= budget.fraction * 22 if budget.kind == "mean" else within.mean() >= 0.95
        )


def test_every_policy_is_compared_with_the_controller_under_every_budget(judged):
    verdict, _ = judged
    for budget in BUDGETS:
        by_policy = scores(verdict, budget)
        mixed = {"static mix"} if budget.kind == "mean" else set()
        assert set(by_policy) == {"controller", "best fixed", "full"} | mixed
        ours = by_policy.pop("controller")
        assert ours.gain is None
        for score in by_policy.values():
            assert score.gain.point == pytest.approx(ours.accuracy.point - score.accuracy.point)
        assert by_policy["full"].accuracy.point == 1  # right is what the whole model answers
        assert by_policy["full"].mean_ms.point == 22
        selected = verdict.selection[str(budget)]
        assert by_policy["best fixed"].settings == ((selected.setting, 1.0),)


def test_the_best_fixed_setting_is_chosen_by_everything_that_was_measured_before(judged):
    verdict, store = judged
    controller = load_controller(store.folder / FOLDER, MODELS[0], None)
    for budget in BUDGETS:
        selected = verdict.selection[str(budget)]
        rivals = rivals_of(controller.policy, budget)
        assert selected.setting == str(controller.space.settings[rivals.fixed])
        assert prefill_ms(Setting.parse(selected.setting)) <= budget.fraction * 22
        assert (selected.expected, selected.shortfall) == (rivals.accuracy, rivals.shortfall)
        assert selected.shortfall >= 0
        assert selected.learned == controller.policy.gains[budget.kind].is_learned(budget.fraction)
        assert (selected.n, selected.validation_accuracy) == (None, None)


def test_a_policy_that_the_verdict_calls_not_learned_chooses_alike_for_all(judged):
    verdict, store = judged
    for budget in BUDGETS:
        chosen = {d.setting for d in store.decisions() if d.budget == budget}
        if not verdict.selection[str(budget)].learned:
            assert len(chosen) <= (2 if budget.kind == "mean" else 1)  # a mean is spent by the toss of a coin


def test_kinds_are_told_apart_afterwards(judged):
    verdict, _ = judged
    assert {score.kind for score in verdict.by_kind} == {"odd", "even"}
    assert {score.n for score in verdict.by_kind} == {3}
    assert verdict.kinds_differ.budget == "mean 0.90"  # the upper one of two
    assert 0 < verdict.kinds_differ.p_value <= 1


def test_what_choosing_costs_is_charged_to_the_controller_alone(stand_in, monkeypatch):
    with stand_in.session() as session:
        controller = train(session)
        delay(monkeypatch, stand_in.clock, Observer, 1.5, method="__call__")
        verdict = validate(session, controller)
    store = stand_in.store()
    assert {decision.controller_ms for decision in store.decisions()} == {1.5}
    latency_ms = {
        (trial.sample_id, e.setting): e.timing.prefill_ms for trial in store.trials("test") for e in trial.executions
    }
    for budget in BUDGETS:
        chosen = [latency_ms[d.sample_id, d.setting] for d in store.decisions() if d.budget == budget]
        by_policy = scores(verdict, budget)
        assert by_policy["controller"].mean_ms.point == pytest.approx(np.mean(chosen) + 1.5)
        assert by_policy["full"].mean_ms.point == 22


def refused(stand_in, error, message, *overrides):
    with stand_in.session(*BRIEF) as session:
        controller = train(session)
    with stand_in.reopened(*overrides) as session:
        calls = session.counter.calls
        with pytest.raises(error, match=message):
            validate(session, controller)
        assert session.counter.calls == calls
    assert stand_in.store().trials("test") == []
    assert "test" not in stand_in.store().metadata["phases"]


@pytest.mark.parametrize("key", ["mean_budgets", "deadlines"])
def test_a_budget_that_no_setting_can_meet_is_refused_before_anything_runs(stand_in, key):
    # the cheapest setting takes 13 of 22 ms
    message = r"no setting can meet the budget \w+ 0.5 of full; .* \(1[34].\d ms where full takes 2\d.\d ms; asked .*\)"
    refused(stand_in, BudgetError, message, f"validation.{key}=[0.5]")


def test_no_budget_at_all(stand_in):
    message = "validation.mean_budgets and validation.deadlines are both empty"
    refused(stand_in, ConfigError, message, "validation.mean_budgets=[]", "validation.deadlines=[]")


def test_budgets_that_cannot_be_told_apart(stand_in):
    message = "2 budgets are called 'mean 0.90'; let them differ by at least 0.01"
    refused(stand_in, ConfigError, message, "validation.mean_budgets=[0.9, 0.901]")


def test_too_few_samples_for_an_interval(tmp_path, monkeypatch):
    stand_in = StandIn(tmp_path, monkeypatch, {"test": 1})
    refused(stand_in, ConfigError, "there is one test sample; intervals need at least 2, add some")


def test_a_controller_of_another_metric(stand_in):
    message = "trained on prefill_ms, this run measures ttft_ms; train one for it"
    refused(stand_in, UnlikeConditions, message, "measure.latency_metric=ttft_ms")


def test_a_budget_that_is_named_twice_is_judged_once(stand_in):
    with stand_in.session(*BRIEF, "validation.mean_budgets=[0.9, 0.9]", "validation.deadlines=[]") as session:
        verdict = validate(session, train(session))
    assert [score.policy for score in verdict.scores] == ["controller", "best fixed", "static mix", "full"]
    assert len(stand_in.store().decisions()) == 6


def test_the_middle_budget_is_that_of_their_sizes_not_of_their_order(stand_in):
    with stand_in.session(*BRIEF, "validation.mean_budgets=[0.7, 0.95, 0.9]", "validation.deadlines=[]") as session:
        verdict = validate(session, train(session))
    assert verdict.kinds_differ.budget == "mean 0.90"


def test_deadlines_alone_can_be_judged(stand_in):
    with stand_in.session(*BRIEF, "validation.mean_budgets=[]") as session:
        verdict = validate(session, train(session))
    assert verdict.kinds_differ.budget == "deadline 0.80"


def test_a_time_box_that_ends_early_is_said(stand_in):
    with stand_in.session(*BRIEF, "validation.seconds=0.2") as session:
        verdict = validate(session, train(session))
        said = list(_shortcomings(session, verdict))
    assert 2 <= verdict.samples < 6
    assert f"judged on {verdict.samples} of 6 test samples: the time box ended before" in said
    assert verdict.stop == "the time box ended"


def test_asking_for_more_samples_than_there_are_is_no_shortcoming(stand_in):
    with stand_in.session(*BRIEF, "validation.samples=300", "validation.margin=0.9") as session:
        verdict = validate(session, train(session))
        assert list(_shortcomings(session, verdict)) == []
    assert verdict.samples == COUNTS["test"]


def test_the_box_of_the_whole_run_ends_judging_after_a_hundred_samples(tmp_path, monkeypatch):
    stand_in = StandIn(tmp_path, monkeypatch, {"test": 105})
    with stand_in.session(*BRIEF, "seconds=0.1", "validation.samples=105", "validation.mean_budgets=[]") as session:
        verdict = validate(session, train(session))
        assert session.time_left_s() < 0  # it had ended before the first sample
    assert (verdict.samples, verdict.stop) == (100, "the time box ended")


def test_what_a_verdict_cannot_say_for_sure_is_said(judged):
    verdict, store = judged
    doubtful = dataclasses.replace(verdict.selection["mean 0.70"], shortfall=0.034)
    sure = dataclasses.replace(verdict.selection["mean 0.90"], shortfall=0.0)
    selection = {"mean 0.70": doubtful, "mean 0.90": sure}
    late = [dataclasses.replace(s, unmeetable=2 if s.budget.kind == "deadline" else 0) for s in verdict.scores]
    session = SimpleNamespace(config=Config(), store=store, samples=lambda split: range(6))
    said = list(_shortcomings(session, dataclasses.replace(verdict, selection=selection, scores=tuple(late))))
    assert said == [
        "the truly best fixed setting may be better than the one that was chosen: 3.4 points under mean 0.70 "
        "(expected)",
        "deadline 0.80: 2 of 6 samples take longer under every setting that was measured on them, so they count "
        "for no policy here",
    ]


def test_failures_are_left_out_pairwise_and_said(stand_in, monkeypatch):
    with stand_in.session(*BRIEF) as session:
        controller = train(session)
        fail_under(monkeypatch, session, session.space.full, samples={"test-2"})
        verdict = validate(session, controller)
        said = list(_shortcomings(session, verdict))
    assert said[0] == "1 of 6 judged samples are left out: not every policy could be measured"
    assert said[-1] == "1 executions of the validation failed; the report says why"
    assert verdict.samples == 5
    assert {score.samples for score in verdict.scores} == {5}
    # failed calls are calls
    assert verdict.counted.executions == verdict.counted.generate_calls


def test_a_controller_whose_choices_always_fail_gets_no_verdict(stand_in, monkeypatch):
    with stand_in.session(*BRIEF) as session:
        controller = train(session)
        fail_under(monkeypatch, session, session.space.full, samples={f"test-{i}" for i in range(5)})
        with pytest.raises(MeasurementError, match="only 1 of 6 test samples could be measured under every policy"):
            validate(session, controller)
    assert not stand_in.store().holds("validation.json")
    assert len(stand_in.store().trials("test")) == 6


def test_batches_without_a_scorer_get_no_verdict(stand_in):
    with stand_in.session(*BRIEF) as session:
        controller = train(session)
        unscored = {
            split: [dataclasses.replace(batch, score=None) for batch in stand_in.batches.split(split)]
            for split in COUNTS
        }
        stand_in.batches.split = unscored.__getitem__
        with pytest.raises(MeasurementError, match="answers could not be scored"):
            validate(session, controller)


def test_an_interrupted_validation_keeps_what_it_measured(stand_in, monkeypatch):
    with stand_in.session(*BRIEF) as session:
        controller = train(session)
        run = session.runner.run

        def interrupted(phase, index, *given, **options):
            if (phase, index) == ("test", 3):
                raise KeyboardInterrupt
            return run(phase, index, *given, **options)

        monkeypatch.setattr(session.runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            validate(session, controller)
    store = stand_in.store()
    assert len(store.trials("test")) == 3
    assert len(store.decisions()) == 3 * 3
    assert store.metadata["phases"]["test"]["generate_calls"] == executions(store, "test")
    assert not store.holds("validation.json")


def test_each_rival_gets_a_verdict_for_accuracy_and_for_latency(judged):
    verdict, _ = judged
    compared = {(c.budget, c.policy): c for c in verdict.comparisons}
    assert set(compared) == {(str(s.budget), s.policy) for s in verdict.scores if s.policy != "controller"}
    for budget in BUDGETS:
        full = compared[str(budget), "full"]
        assert full.gain.point == pytest.approx(scores(verdict, budget)["full"].gain.point)
        assert full.latency.metric == "prefill_ms"
        assert full.latency.pairs == 6
        assert full.latency.ratio.point <= 1  # nothing costs more than full
        # 6 samples: the interval of 95 % goes from the smallest to the largest difference
        assert full.latency.verdict in {"faster", "undecided", "same"}
    assert verdict.stop == "all samples were judged"


def test_the_noise_floor_is_measured(judged):
    verdict, store = judged
    noise = verdict.noise
    assert (noise.asked, noise.comparison.pairs, noise.left_out) == (2, 2, {})
    assert (noise.spread, noise.comparison.ratio.point) == (0, 1)  # the fake clock has no noise
    assert len(store.trials("test")) == 6


def test_without_a_noise_floor(stand_in):
    with stand_in.session(*BRIEF, "validation.aa_every=0") as session:
        verdict = validate(session, train(session))
    assert verdict.noise is None
    for trial in stand_in.store().trials("test"):
        assert len({e.setting for e in trial.executions}) == len(trial.executions)


def test_disturbed_executions_are_left_out_of_latencies_and_counted(stand_in, monkeypatch):
    with stand_in.session("validation.aa_every=1") as session:
        controller = train(session)
        disturb_full(monkeypatch, samples={"test-1"})
        verdict = validate(session, controller)
    for compared in verdict.comparisons:
        left_out = compared.latency.left_out
        assert left_out == {"stolen CPU time": 1} if compared.policy == "full" else sum(left_out.values()) <= 1
        assert compared.latency.pairs == 6 - sum(left_out.values())
    of_full = next(score for score in verdict.fixed if Setting.parse(score.setting) in FULL)
    assert of_full.mean_ms.point == pytest.approx(22)
    assert verdict.noise.left_out == {"stolen CPU time": 1}
    assert verdict.noise.comparison.pairs == 5
    assert verdict.samples == 6  # for accuracy all of them count
    stored = [e for trial in stand_in.store().trials("test") for e in trial.executions if e.disturbed]
    assert {e.sample_id for e in stored} == {"test-1"}


def disturb_full(monkeypatch, samples):
    """Let ``full`` lose its CPU on some samples."""
    real = chronostat.execution.trials.execute

    def execute(model, request, *, setting, **options):
        execution = real(model, request, setting=setting, **options)
        if request.id not in samples or {setting} != FULL:
            return execution
        slow = dataclasses.replace(execution.timing, prefill_ms=execution.timing.prefill_ms + 20)
        return dataclasses.replace(execution, timing=slow, disturbed="stolen CPU time 20 ms")

    monkeypatch.setattr(chronostat.execution.trials, "execute", execute)


def test_judging_ends_when_everything_is_decided_if_that_is_asked_for(tmp_path, monkeypatch):
    stand_in = StandIn(tmp_path, monkeypatch, {"test": 60})
    with stand_in.session("validation.stop=decided", "validation.samples=60", "validation.margin=0.9") as session:
        verdict = validate(session, train(session))
    judged = len(stand_in.store().trials("test"))
    assert judged == verdict.samples < 60
    assert verdict.stop == "every verdict was known"
    assert {c.latency.verdict for c in verdict.comparisons} == {"same"}  # within 90 %


def test_what_training_took_out_is_never_judged(stand_in, monkeypatch):
    out = Setting(moe_topk=1, block_skip=())
    with stand_in.session() as session:
        fail_under(monkeypatch, session, out)
        controller = train(session)
        assert controller.metadata.taken_out == (str(out),)
        executed = sum(e.setting == out for trial in session.store.trials() for e in trial.executions)
        verdict = validate(session, controller)
        again = sum(e.setting == out for trial in session.store.trials() for e in trial.executions)
    assert again == executed  # not once more
    assert str(out) not in {setting for score in verdict.scores for setting, _ in score.settings}
    assert verdict.counted.executions == verdict.counted.generate_calls
    loaded = load_controller(stand_in.store().folder / FOLDER, stand_in.model, None)
    assert loaded.metadata.taken_out == (str(out),)
    assert not loaded.policy.legal[loaded.space.index(out)]
