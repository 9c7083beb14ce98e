"""A whole training on the stand-in: what is executed, what is saved, and what a failing setting does."""

from itertools import chain

import numpy as np
import pytest

import chronostat.execution.trials
from chronostat.control.calibration import GROUP
from chronostat.control.controller import load_controller
from chronostat.control.controller_files import FOLDER
from chronostat.control.observer import Observer
from chronostat.errors import BudgetError, MeasurementError
from chronostat.progress import Silent
from chronostat.records import Budget, Execution, Setting, StageTiming, Trial
from chronostat.runs.plan import Plan, planned_executions, warm_ms
from chronostat.runs.training import train
from stand_ins.observing import delay
from stand_ins.runs import StandIn, fail_under, prefill_ms

pytestmark = pytest.mark.slow  # whole runs, trained

PHASES = ("calibrate", "select", "train")


def trained(stand_in, *overrides, name="run"):
    with stand_in.session(*overrides, name=name) as session:
        train(session)
    return stand_in.store(name)


def executions(store, phase):
    return sum(len(trial.executions) for trial in store.trials(phase))


def draws(trial):
    return [trial.executions[i].setting for i in trial.draws]


@pytest.mark.parametrize("learner", ["direct", "rloo"])
def test_what_was_executed_is_what_was_counted_and_stored(stand_in, learner):
    store = trained(stand_in, f"train.learner={learner}")
    phases = store.metadata["phases"]
    assert list(phases) == ["warmup", *PHASES]
    for phase in phases:
        assert phases[phase]["generate_calls"] == executions(store, phase) > 0
    train_trials = store.trials("train")
    assert [trial.index for trial in train_trials] == list(range(len(train_trials)))
    assert [step.index for step in store.steps()] == list(range(len(train_trials)))


def test_each_phase_takes_the_executions_that_it_was_given(stand_in):
    store = trained(stand_in)
    # 16 for 6 settings: all of them on 2 samples
    assert [len(trial.executions) for trial in store.trials("calibrate")] == [6, 6]
    # 30, six on each sample of the validation split
    assert [trial.sample_id for trial in store.trials("select")] == [f"validation-{i}" for i in range(5)]
    assert sum(trial.asked for trial in store.trials("select")) == 30
    # 24 of the training; draws of one trial that are equal share an execution, and the last trial is finished
    asked = [trial.asked for trial in store.trials("train")]
    assert sum(asked[:-1]) < 24 <= sum(asked) < 24 + 4
    assert {trial.executions[0].split for trial in store.trials("train")} == {"train"}


def test_the_forecast_of_a_run_is_what_it_executes(stand_in):
    with stand_in.session() as session:
        planned = planned_executions(session.workload)
        plan = Plan.of(session)
        train(session)
    store = stand_in.store()
    assert planned == {"calibrate": 12, "select": 30, "train": 24, "test": 6 * 6}
    assert executions(store, "calibrate") == planned["calibrate"]
    for phase in ("select", "train"):
        assert planned[phase] <= sum(trial.asked for trial in store.trials(phase)) < planned[phase] + 4
    assert plan.executions == planned  # no box: all samples
    assert (plan.samples, plan.asked) == (6, 6)
    # full takes 38 ms; the six settings 6 + 2 * (16, 14, 12, 10.5, 8, 7) ms, on average 28.5
    assert plan.execution_s == pytest.approx(1.1 * 28.5e-3)
    assert plan.minutes == 1


def test_what_counting_the_work_adds_is_taken_out_of_the_forecast():
    def trial(**took_ms):
        ran = [
            Execution(
                sample_id="a",
                split="train",
                setting=Setting(moe_topk=int(topk[1:])),
                timing=ms and StageTiming(source="measured", total_ms=ms, new_tokens=1, decode_steps=0),
                invalid=None if ms else "out of memory",
            )
            for topk, ms in took_ms.items()
        ]
        return Trial(phase="warmup", index=0, sample_id="a", executions=tuple(ran))

    # full took 40 ms, and 60 where its work was counted: so the mean of 60, 30 and 15 ms is that of 40, 20 and 10
    assert warm_ms(trial(k4=40.0), trial(k4=60.0, k2=30.0, k1=15.0)) == pytest.approx(70 / 3)
    assert warm_ms(trial(k4=40.0), trial(k4=60.0, k2=None, k1=15.0)) == pytest.approx(25)
    assert warm_ms(trial(k4=40.0), trial(k4=None, k2=30.0, k1=15.0)) == pytest.approx(22.5)  # nothing tells


def test_more_selection_than_there_are_samples_ends_with_them(stand_in):
    assert planned_executions(stand_in.workload("train.select_executions=1000"))["select"] == 10 * 6
    store = trained(stand_in, "train.select_executions=1000")
    assert sum(trial.asked for trial in store.trials("select")) == 10 * GROUP == 60


def test_without_a_selection_nothing_of_the_validation_split_is_executed(stand_in):
    store = trained(stand_in, "train.select_executions=0")
    assert store.trials("select") == []
    assert store.metadata["phases"]["select"]["generate_calls"] == 0


@pytest.mark.parametrize(
    ("seconds", "samples"),
    [
        (1e6, 300),
        # .03135 s each: 66 of them before, and 6 on each sample; 30 s are enough for about (30 - 2.3) / .19 = 146
        (30.0, 146),
        (3.0, 100),  # never fewer than say enough
    ],
)
def test_a_box_is_paid_in_judged_samples(tmp_path, monkeypatch, seconds, samples):
    stand_in = StandIn(tmp_path, monkeypatch, {"test": 300})
    with stand_in.session(f"seconds={seconds}", "validation.samples=300") as session:
        plan = Plan.of(session)
    assert plan.asked == 300
    assert abs(plan.samples - samples) <= 3
    assert plan.executions == {"calibrate": 12, "select": 30, "train": 24, "test": 6 * plan.samples}


def test_a_slow_machine_executes_the_same_to_learn(stand_in, monkeypatch):
    """Three times slower, and its box ends while it calibrates: the same draws all the same, so it knows no less."""
    quick = trained(stand_in, "train.anchor_every_s=1000", name="quick")
    advance = stand_in.clock.advance_ms
    monkeypatch.setattr(stand_in.clock, "advance_ms", lambda ms: advance(3 * ms))
    slow = trained(stand_in, "train.anchor_every_s=1000", "seconds=2", name="slow")
    for phase in PHASES:
        assert [draws(trial) for trial in slow.trials(phase)] == [draws(trial) for trial in quick.trials(phase)]
        assert executions(slow, phase) == executions(quick, phase)
    assert slow.metadata["full_ms"]["calibrate"] == 3 * quick.metadata["full_ms"]["calibrate"]
    assert slow.metadata["phases"]["train"]["seconds"] > 2.5 * quick.metadata["phases"]["train"]["seconds"]
    assert slow.metadata["calibration"]["fractions"] == pytest.approx(quick.metadata["calibration"]["fractions"])


def test_anchors_that_are_due_take_nothing_from_what_is_drawn(stand_in):
    rarely = trained(stand_in, "train.anchor_every_s=1000", name="rarely")
    always = trained(stand_in, "train.anchor_every_s=0.001", name="always")
    for phase, executed in (("select", 30), ("train", 24)):
        assert executions(rarely, phase) == sum(trial.asked for trial in rarely.trials(phase))
        added = [trial for trial in always.trials(phase) if trial.asked < len(trial.executions)]
        assert phase == "select" or len(added) >= 2  # in the selection full is drawn anyway
        assert executed <= sum(trial.asked for trial in always.trials(phase)) < executed + 4
    assert [draws(t) for t in always.trials("select")] == [draws(t) for t in rarely.trials("select")]


def test_every_draw_is_stored_with_its_chance(stand_in):
    store = trained(stand_in)
    for trial in store.trials("select"):
        assert trial.probabilities == pytest.approx((1 / 6,) * 6)  # full is one of six; five of the other five follow
        assert trial.policy_version is None
    versions = [trial.policy_version for trial in store.trials("train")]
    assert versions == sorted(versions)
    assert versions[0] >= 0
    for trial in store.trials("train"):
        assert len(trial.probabilities) == len(trial.draws) == 4
        of = {}
        for setting, chance in zip(draws(trial), trial.probabilities, strict=True):
            assert 0 < chance <= 1
            assert of.setdefault(setting, chance) == chance  # one chance for each setting
        assert sum(of.values()) <= 1 + 1e-9


def test_calibration_knows_what_each_setting_costs(stand_in):
    metadata = trained(stand_in).metadata
    settings = stand_in.workload().space.settings
    # every setting takes the same time on every sample, so means and medians are those times
    assert metadata["calibration"]["full_ms"] == metadata["full_ms"]["calibrate"] == 22
    assert metadata["calibration"]["fractions"] == pytest.approx([prefill_ms(s) / 22 for s in settings], rel=0.05)
    assert metadata["calibration"]["samples"] == 2


def test_the_forecast_says_how_wrong_it_is(stand_in):
    forecast = trained(stand_in).metadata["forecast"]
    assert 0 < forecast["error"] < 0.05  # no noise but what one sample in five leaves unknown
    store = stand_in.store()
    assert forecast["executions"] == sum(executions(store, phase) for phase in PHASES)


def test_budgets_are_drawn_from_the_range_of_this_machine(stand_in):
    store = trained(stand_in)
    drawn = {trial.budget for trial in store.trials("train")}
    low, high = store.metadata["budget_range"]
    # between the quantiles .05 and .95 of 13, 14, 16.5, 18, 20 and 22 ms, at positions .25 and 4.75 of 5
    assert (low, high) == pytest.approx([13.25 / 22, 21.5 / 22], rel=0.05)
    assert all(low - 1e-9 <= budget.fraction <= high + 1e-9 for budget in drawn)
    assert len(drawn) > 3


@pytest.mark.parametrize("learner", ["direct", "rloo"])
def test_the_controller_is_in_the_run_and_decides_as_the_one_that_was_returned(stand_in, learner):
    budgets = [Budget(kind=kind, fraction=fraction) for kind in ("mean", "deadline") for fraction in (0.75, 0.9)]
    with stand_in.session(f"train.learner={learner}") as session:
        controller = train(session)
        trial_inputs = [session.runner.request(trial_input) for trial_input in session.samples("test")]
        chosen = [controller.choose(s, b, stand_in.clock, 0.5).setting for s in trial_inputs for b in budgets]
    store = stand_in.store()
    loaded = load_controller(store.folder / FOLDER, stand_in.model, None)
    assert [loaded.choose(s, b, stand_in.clock, 0.5).setting for s in trial_inputs for b in budgets] == chosen
    assert loaded.metadata.executions == sum(executions(store, phase) for phase in PHASES)
    assert (loaded.metadata.metric, loaded.metadata.model) == ("prefill_ms", "molmo-like")
    assert loaded.metadata.full_ms == pytest.approx(22, rel=0.02)


@pytest.mark.parametrize("learner", ["direct", "rloo"])
@pytest.mark.parametrize("kind", ["mean", "deadline"])
def test_a_budget_that_cannot_be_kept_is_refused_before_any_training(stand_in, learner, kind):
    """The cheapest setting takes 13 of 22 ms."""
    budgets = [Budget(kind=kind, fraction=fraction) for fraction in (0.95, 0.5)]
    message = rf"no setting can meet the budget {kind} 0.5 of full; the cheapest needs 0\.(5[5-9]|6)"
    with stand_in.session(f"train.learner={learner}") as session, pytest.raises(BudgetError, match=message):
        train(session, budgets)
    store = stand_in.store()
    assert executions(store, "calibrate") > 0
    assert executions(store, "select") == executions(store, "train") == 0


def test_a_time_box_of_the_training_ends_it_early(stand_in):
    store = trained(stand_in, "train.seconds=0.3", "train.executions=1000")
    took_s = store.metadata["phases"]["train"]["seconds"]
    # the trial that is running when the box ends is still finished: at most 171 ms more
    assert 0.3 <= took_s <= 0.5
    assert len(store.trials("train")) < 30


def test_what_choosing_costs_is_part_of_what_the_controller_is_held_to(stand_in, monkeypatch):
    delay(monkeypatch, stand_in.clock, Observer, 1.1, method="__call__")
    with stand_in.session() as session:
        controller = train(session)
        metadata = session.store.metadata
    assert metadata["calibration"]["fractions"][0] == pytest.approx(1, rel=0.05)  # as measured
    assert controller.policy.forecast.controller == pytest.approx(1.1 / 22, rel=0.02)
    assert {e.controller_ms for trial in session.store.trials("train") for e in trial.executions} == {1.1}


def test_trials_that_fail_altogether_do_not_end_training(stand_in, monkeypatch):
    with stand_in.session() as session:
        fail_under(monkeypatch, session, session.space.settings[-1], samples={"train-3", "train-5", "train-7"})
        train(session)
    store = stand_in.store()
    assert sum(trial.asked for trial in store.trials("train")) >= 24
    assert store.holds(f"{FOLDER}/controller.json")


@pytest.mark.parametrize("learner", ["direct", "rloo"])
def test_a_setting_that_keeps_failing_leaves_the_action_space_and_training_goes_on(stand_in, monkeypatch, learner):
    out = Setting(moe_topk=1, block_skip=(1, 2))
    progress = Warnings()
    with stand_in.session(f"train.learner={learner}", progress=progress) as session:
        fail_after_warming_up(monkeypatch, session, out)
        controller = train(session)
    store = stand_in.store()
    failed = [e for phase in PHASES for trial in store.trials(phase) for e in trial.executions if e.invalid]
    assert {e.setting for e in failed} == {out}
    assert {e.invalid for e in failed} == {"ValueError: bad shapes"}
    assert len(failed) == 3  # twice in the calibration, once in the selection
    assert store.metadata["taken_out"] == {str(out): "ValueError: bad shapes"}
    assert controller.metadata.taken_out == (str(out),)
    of_calibration, taken_out = progress.said
    assert of_calibration == "2 of 12 executions of the calibration failed (17%): ValueError: bad shapes"
    assert "failed 3 times in a row and is used no more: ValueError: bad shapes" in taken_out
    assert all(np.isfinite(value).all() for value in controller.policy.state().values())
    for phase in store.metadata["phases"]:  # failed calls are calls
        assert store.metadata["phases"][phase]["generate_calls"] == executions(store, phase)
    assert all(out not in draws(trial) for trial in store.trials("train"))


def test_what_a_setting_taught_before_it_left_spoils_nothing(stand_in, monkeypatch):
    """It worked while settings were drawn alike, and the policy gradient learns from those draws again at the end."""
    out = Setting(moe_topk=2, block_skip=(1,))
    more = ("train.learner=rloo", "train.executions=60")
    with stand_in.session(*more) as session:
        run = session.runner.run

        def watched(phase, *given, **options):
            if phase == "train" and session.runner.run is watched:
                session.runner.run = run
                fail_after_warming_up(monkeypatch, session, out)
            return run(phase, *given, **options)

        session.runner.run = watched
        controller = train(session)
    assert controller.metadata.taken_out == (str(out),)
    assert all(np.isfinite(value).all() for value in controller.policy.state().values())
    taught = [e for trial in stand_in.store().trials("select") for e in trial.executions if e.setting == out]
    assert len(taught) == 5
    assert all(e.invalid is None for e in taught)


def test_full_that_keeps_failing_stops_the_run_which_can_go_on_once_it_works(stand_in, monkeypatch):
    many = "train.calibration_executions=30"  # 5 samples
    with stand_in.session(many) as session, monkeypatch.context() as broken:
        fail_after_warming_up(broken, session, session.space.full)
        with pytest.raises(MeasurementError, match="full failed 3 times in a row"):
            train(session)
    assert len(stand_in.store().trials("calibrate")) == 3
    with stand_in.reopened(many) as session:
        train(session)
    assert len(stand_in.store().trials("calibrate")) == 5
    assert stand_in.store().metadata["full_ms"]["calibrate"] == 22


class Warnings(Silent):
    def __init__(self):
        self.said = []

    def warn(self, text):
        self.said.append(text)


def fail_after_warming_up(monkeypatch, session, setting):
    """Let the model raise under a setting in every phase that follows."""
    real = chronostat.execution.trials.execute

    def execute(model, request, **options):
        if options["setting"] == setting:
            model.generate(**request.batch, max_new_tokens=1)  # it fails inside the call, so the call is counted
            raise ValueError("bad shapes")
        return real(model, request, **options)

    monkeypatch.setattr(chronostat.execution.trials, "execute", execute)


def test_every_trial_after_the_calibration_records_the_drift(stand_in):
    store = trained(stand_in)
    assert all(trial.drift is None for phase in ("warmup", "calibrate") for trial in store.trials(phase))
    for trial in chain(store.trials("select"), store.trials("train")):
        assert trial.drift.point == 1.0  # the fake machine takes 22 ms for full, always
        assert trial.drift.low < 1 < trial.drift.high
