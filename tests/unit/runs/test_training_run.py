"""A whole training on the stand-in: what is executed, what is saved, and how a run that ended early goes on."""

import json
import shutil
from itertools import pairwise
from math import inf

import pytest
import torch

import chronostat.control.controller as controller_module
import chronostat.execution.trials
import chronostat.runs.training
from chronostat.cli.actions.train import _limits
from chronostat.config import load_config
from chronostat.control.controller import load_controller
from chronostat.control.controller_files import FOLDER
from chronostat.control.observation import Observer
from chronostat.errors import BudgetError, StoreError
from chronostat.progress import Silent
from chronostat.records import Budget, Setting
from chronostat.runs.training import CHECKPOINT, train, training_box_s
from chronostat.tensors import read_tensors, write_tensors
from stand_ins.controllers import policy_of
from stand_ins.observing import delay
from stand_ins.runs import StandIn, fail_under, interrupt_after, prefill_ms
from unit.runs.test_store_crashes import Killed, dying_at

pytestmark = pytest.mark.slow  # whole runs, trained


def policy(store):
    return read_tensors(policy_of(store.folder / FOLDER))[0]


def trained(stand_in, *overrides, name="run"):
    with stand_in.session(*overrides, name=name) as session:
        train(session)
    return stand_in.store(name)


def executions(store, phase):
    return sum(len(trial.executions) for trial in store.trials(phase))


@pytest.mark.parametrize("learner", ["direct", "rloo"])
def test_what_was_executed_is_what_was_counted_and_stored(stand_in, learner):
    store = trained(stand_in, f"train.learner={learner}")
    phases = store.metadata["phases"]
    assert list(phases) == ["warmup", "calibrate", "train"]
    for phase in phases:
        assert phases[phase]["generate_calls"] == executions(store, phase) > 0
    assert [trial.index for trial in store.trials("train")] == list(range(6))
    assert [step.index for step in store.steps()] == list(range(6))


def test_calibration_knows_what_each_setting_costs(stand_in):
    metadata = trained(stand_in).metadata
    settings = stand_in.workload().space.settings
    # every setting takes the same time on every sample, so means and medians are those times
    assert metadata["calibration"]["full_ms"] == metadata["full_ms"]["calibrate"] == 22
    assert metadata["calibration"]["fractions"] == pytest.approx([prefill_ms(setting) / 22 for setting in settings])
    # 171 ms for all settings of a sample: the third one ends the half second
    assert metadata["calibration"]["samples"] == 3
    # between the quantiles .05 and .95 of 13, 14, 16.5, 18, 20 and 22 ms, at positions .25 and 4.75 of 5
    assert metadata["budget_range"] == pytest.approx([13.25 / 22, 21.5 / 22])


def test_budgets_are_drawn_from_the_range_of_this_machine(stand_in):
    store = trained(stand_in)
    drawn = {trial.budget for trial in store.trials("train")}
    low, high = store.metadata["budget_range"]
    assert all(low - 1e-9 <= budget.fraction <= high + 1e-9 for budget in drawn)
    assert len(drawn) > 3


def test_the_controller_is_in_the_run_and_decides_as_the_one_that_was_returned(stand_in):
    with stand_in.session() as session:
        controller = train(session)
        trial_inputs = [session.runner.request(trial_input) for trial_input in session.samples("test")]
        budgets = [Budget(kind=kind, fraction=fraction) for kind in ("mean", "deadline") for fraction in (0.7, 0.9)]
        chosen = [controller.choose(s, b, stand_in.clock).setting for s in trial_inputs for b in budgets]
    loaded = load_controller(stand_in.store().folder / FOLDER, stand_in.model, None)
    assert [loaded.choose(s, b, stand_in.clock).setting for s in trial_inputs for b in budgets] == chosen
    assert loaded.metadata.trials == 6
    assert (loaded.metadata.metric, loaded.metadata.full_ms, loaded.metadata.model) == ("prefill_ms", 22, "molmo-like")


def test_under_other_conditions_every_setting_is_measured_on_samples(stand_in, monkeypatch):
    with stand_in.session() as session:
        train(session)
    file = stand_in.store().folder / FOLDER / "controller.json"
    saved = json.loads(file.read_text())
    saved["controller"]["conditions"]["dtype"] = "bfloat16"
    file.write_text(json.dumps(saved))
    monkeypatch.setattr(controller_module, "clock_for", lambda _: stand_in.clock)
    delay(monkeypatch, stand_in.clock, stand_in.model.model.vision_backbone, 22.0)  # 28 ms of vision instead of 6
    samples = stand_in.batches.split("validation")[:3]
    loaded = load_controller(file.parent, stand_in.model, None, samples=samples)
    assert loaded.full_ms == 22 + 22
    assert loaded.metadata.conditions.dtype == "float32"
    # the cheapest setting took 13 of 22 ms in training, and 13 + 22 of 44 ms here
    assert loaded.choose(samples[0], Budget(kind="deadline", fraction=0.9), stand_in.clock)
    with pytest.raises(BudgetError, match=r"budget deadline 0.7 of full; the cheapest needs 0\.[78]"):
        loaded.choose(samples[0], Budget(kind="deadline", fraction=0.7), stand_in.clock)


@pytest.mark.parametrize("learner", ["direct", "rloo"])
@pytest.mark.parametrize("kind", ["mean", "deadline"])
def test_a_budget_that_cannot_be_kept_is_refused_before_any_training(stand_in, learner, kind):
    """The cheapest setting takes 13 of 22 ms."""
    budgets = [Budget(kind=kind, fraction=fraction) for fraction in (0.9, 0.5)]
    message = f"no setting can meet the budget {kind} 0.5 of full; the cheapest needs 0.59"
    with stand_in.session(f"train.learner={learner}") as session, pytest.raises(BudgetError, match=message):
        train(session, budgets)
    store = stand_in.store()
    assert executions(store, "calibrate") > 0
    assert executions(store, "train") == 0


def test_the_time_box_ends_training(stand_in):
    with stand_in.session("train.seconds=0.3", "train.trials=1000") as session:
        train(session)
        last = session.store.trials("train")[-1]
    took_s = stand_in.store().metadata["phases"]["train"]["seconds"]
    # the trial that is running when the box ends is still finished: at most 171 ms more
    assert 0.3 <= took_s <= 0.5
    assert last.index < 30


def test_the_time_box_of_a_training_goes_on_where_it_was_interrupted(stand_in, monkeypatch):
    box = ("train.seconds=0.6", "train.trials=1000", "train.checkpoint_every_s=0.01")
    with stand_in.session(*box) as session, monkeypatch.context() as pressed:
        monkeypatch.setattr(session.runner, "run", press_after(pressed, stand_in, session, 14))
        with pytest.raises(KeyboardInterrupt):
            train(session)
    before_s = stand_in.store().metadata["phases"]["train"]["seconds"]
    assert before_s >= 0.3
    with stand_in.reopened(*box) as session:
        train(session)
    # both together; the trial that was interrupted and the last one take at most 171 ms each
    assert 0.6 <= stand_in.store().metadata["phases"]["train"]["seconds"] <= 0.6 + 2 * 0.171


@pytest.mark.parametrize(("learner", "calls"), [("direct", 9), ("rloo", 1)])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(stand_in, monkeypatch, learner, calls):
    whole = trained(stand_in, f"train.learner={learner}", name="whole")
    with stand_in.session(f"train.learner={learner}") as session, monkeypatch.context() as pressed:
        monkeypatch.setattr(session.runner, "run", press_after(pressed, stand_in, session, calls))
        with pytest.raises(KeyboardInterrupt):
            train(session)
    store = stand_in.store()
    stored = store.trials("train")
    assert len(stored) < 6
    assert not store.holds(f"{FOLDER}/controller.json")

    with stand_in.reopened(f"train.learner={learner}") as session:
        train(session)
        executed_again = session.counter.calls
    assert store.trials("train")[: len(stored)] == stored
    assert [trial.index for trial in store.trials("train")] == list(range(6))
    new = store.trials("train")[len(stored) :]
    # a warm-up of 8, and only the trials that were not stored
    assert executed_again == 8 + sum(len(trial.executions) for trial in new)
    assert [draws(trial) for trial in store.trials("train")] == [draws(trial) for trial in whole.trials("train")]
    assert policy(store).keys() == policy(whole).keys()
    assert all(torch.equal(policy(store)[name], value) for name, value in policy(whole).items())
    assert store.metadata["phases"]["train"]["generate_calls"] == executions(store, "train")


def press_after(pressed, stand_in, session, calls):
    """The runner's ``run``; ctrl-C in the middle of training."""
    run = session.runner.run

    def watched(phase, index, request, chosen, **options):
        if phase == "train" and index == 0:
            interrupt_after(pressed, stand_in.model, calls)
        return run(phase, index, request, chosen, **options)

    return watched


def draws(trial):
    return [trial.executions[i].setting for i in trial.draws]


def test_every_stored_trial_belongs_to_the_budgets_of_a_checkpoint(stand_in, monkeypatch):
    seen = []
    with stand_in.session("train.checkpoint_every_s=1000") as session:
        run = session.runner.run

        def watched(phase, *given, **options):
            if phase == "train":
                seen.append((session.store.folder / CHECKPOINT).is_file())
            return run(phase, *given, **options)

        monkeypatch.setattr(session.runner, "run", watched)
        train(session)
    assert seen == [True] * 6


def test_checkpoints_are_taken_by_time(stand_in, monkeypatch):
    saved = []

    def watched(path, tensors, data):
        if path.name == CHECKPOINT:
            saved.append((data["trained_s"], data["trainer"]["next_step"]))

    monkeypatch.setattr(chronostat.runs.training, "write_tensors", watched)
    trained(stand_in, "train.checkpoint_every_s=0.15", "train.trials=8")
    times = [trained_s for trained_s, _ in saved]
    steps = [next_step for _, next_step in saved]
    assert saved[0] == (0, 0)
    assert steps[-1] == 8
    assert 3 < len(saved) < 9  # not after every step
    assert all(later - earlier >= 0.15 for earlier, later in pairwise(times[:-1]))


def test_a_run_that_was_killed_while_it_calibrated_calibrates_anew(stand_in, monkeypatch):
    with stand_in.session() as session, monkeypatch.context() as pressed:
        interrupt_after(pressed, stand_in.model, 3)
        with pytest.raises(KeyboardInterrupt):
            train(session)
    assert not (stand_in.store().folder / CHECKPOINT).exists()
    with stand_in.reopened() as session:
        train(session)
    assert stand_in.store().metadata["calibration"]["samples"] == 3
    assert len(stand_in.store().trials("train")) == 6


def test_a_checkpoint_of_another_run_is_refused(stand_in):
    trained(stand_in)
    other = stand_in.store()
    (other.folder / FOLDER / "controller.json").unlink()
    (other.folder / CHECKPOINT).write_bytes(b"damaged")
    with stand_in.reopened() as session, pytest.raises(StoreError, match=r"cannot read .*checkpoint.safetensors"):
        train(session)


def test_a_checkpoint_of_another_version_is_refused(stand_in):
    trained(stand_in)
    path = stand_in.store().folder / CHECKPOINT
    tensors, numbers = read_tensors(path)
    missing = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    for content in ((tensors, {}), (tensors, {**numbers, "trainer": {}}), (missing, numbers)):
        write_tensors(path, *content)
        message = r"(?s)cannot continue from .*checkpoint.safetensors: .*not written by this version of chronostat"
        with stand_in.reopened() as session, pytest.raises(StoreError, match=message):
            train(session)


def test_what_choosing_costs_is_part_of_what_a_setting_costs_before_it_is_drawn(stand_in, monkeypatch):
    delay(monkeypatch, stand_in.clock, Observer, 1.1, method="__call__")
    with stand_in.session("train.trials=1") as session:
        controller = train(session)
    metadata = stand_in.store().metadata
    assert metadata["calibration"]["controller_ms"] == pytest.approx(1.1)
    assert metadata["calibration"]["fractions"][0] == 1  # as measured
    # 1.1 of 22 ms on top of the quantiles of the settings
    assert metadata["budget_range"] == pytest.approx([13.25 / 22 + 0.05, 21.5 / 22 + 0.05])
    charged = [prefill_ms(setting) / 22 + 0.05 for setting in stand_in.workload().space.settings]
    assert controller.metadata.latency_means == pytest.approx(charged)
    assert controller.learner.policy_state()["limits.latencies.means"].tolist() == pytest.approx(charged)
    with pytest.raises(BudgetError, match=r"the cheapest needs 0.6410 of full"):  # (13 + 1.1) / 22
        controller.learner.decide(torch.zeros(controller.observer.size), Budget(kind="mean", fraction=0.6))


def test_trials_that_fail_altogether_do_not_end_training(stand_in, monkeypatch):
    with stand_in.session() as session:
        fail_under(monkeypatch, session, session.space.settings[-1], samples={"train-3", "train-5", "train-7"})
        controller = train(session)
    assert controller.metadata.trials == 6


def config(**values):
    return load_config(None, [f"{key.replace('__', '.')}={value}" for key, value in values.items()])


def test_training_gets_what_validation_leaves():
    # 430 s in all, 40 have gone, validation takes 90 s + 1.15 * 300 samples * 11 settings * .05 s = 279.75 s
    whole = {"seconds": 430, "train__seconds": 150, "validation__select_seconds": 90, "validation__samples": 300}
    assert training_box_s(config(**whole), elapsed_s=40, execution_s=0.05) == pytest.approx(110.25)
    # a fast machine has time to spare, but training has its own box
    assert training_box_s(config(**whole), elapsed_s=40, execution_s=0.01) == 150
    # on a slow one nothing is left: training gets its 10 s all the same
    assert training_box_s(config(**whole), elapsed_s=40, execution_s=0.1) == 10
    # a box below that is kept
    assert training_box_s(config(**(whole | {"train__seconds": 4})), elapsed_s=40, execution_s=0.1) == 4
    assert training_box_s(config(train__seconds=150), elapsed_s=1e6, execution_s=9) == 150


def test_a_forecast_knows_every_limit_of_the_training():
    def most(**values):
        return _limits(config(**values), settings=6, execution_s=0.05)["train"][1]

    assert most() == inf
    assert most(train__trials=10, train__group_size=4, train__repeats=3) == 120
    assert most(train__executed_seconds=3) == pytest.approx(60)  # of .05 s each
    assert most(train__trials=10, train__executed_seconds=3) == 40


def test_a_forecast_knows_the_samples_of_the_calibration():
    assert _limits(config(), settings=6, execution_s=0.05)["calibrate"] == (25, inf)
    assert _limits(config(train__calibration_samples=4), settings=6, execution_s=0.05)["calibrate"] == (25, 4 * 6)


def test_calibration_can_end_after_so_many_samples(stand_in):
    store = trained(stand_in, "train.calibration_samples=2", "train.trials=1")
    assert [trial.index for trial in store.trials("calibrate")] == [0, 1]  # the half second allows three
    assert store.metadata["calibration"]["samples"] == 2


def test_training_may_die_at_any_write(tmp_path, monkeypatch):
    """kill -9 at the n-th change of the disk: the run goes on, or begins, and learns what an undisturbed one does."""
    stand_in = StandIn(tmp_path, monkeypatch)
    short = ("train.trials=3", "train.checkpoint_every_s=0.12", "train.calibration_samples=2")
    whole = trained(stand_in, *short, name="whole")
    survived, call = False, 3
    while not survived:
        with dying_at(monkeypatch, call):
            try:
                trained(stand_in, *short)
                survived = True
            except Killed:
                """As if it had never come back."""
        if not survived:
            with stand_in.reopened(*short) as session:
                train(session)
        store = stand_in.store()
        assert [draws(trial) for trial in store.trials("train")] == [draws(trial) for trial in whole.trials("train")]
        assert all(torch.equal(policy(store)[name], value) for name, value in policy(whole).items())
        assert store.metadata["calibration"] == whole.metadata["calibration"]
        for phase, metadata in store.metadata["phases"].items():
            assert metadata.get("generate_calls", executions(store, phase)) == executions(store, phase)
        shutil.rmtree(store.folder)
        call += 10
    assert call > 60


@pytest.mark.parametrize("learner", ["direct", "rloo"])
def test_a_setting_that_keeps_failing_leaves_the_action_space_and_training_goes_on(stand_in, monkeypatch, learner):
    out = Setting(moe_topk=1, block_skip=(1, 2))
    progress = Warnings()
    with stand_in.session("train.trials=15", f"train.learner={learner}", progress=progress) as session:
        fail_in_training(monkeypatch, session, out)
        controller = train(session)
    store = stand_in.store()
    failed = [e for trial in store.trials("train") for e in trial.executions if e.invalid]
    assert {e.setting for e in failed} == {out}
    assert {e.invalid for e in failed} == {"ValueError: bad shapes"}
    assert len(failed) == 3
    assert len(store.trials("train")) == 15
    assert store.metadata["taken_out"] == {str(out): "ValueError: bad shapes"}
    assert controller.metadata.taken_out == (str(out),)
    assert len(progress.said) == 1
    assert "failed 3 times in a row and is used no more: ValueError: bad shapes" in progress.said[0]
    assert all(torch.isfinite(value).all() for value in controller.learner.policy_state().values())
    for phase in store.metadata["phases"]:  # failed calls are calls
        assert store.metadata["phases"][phase]["generate_calls"] == executions(store, phase)


class Warnings(Silent):
    def __init__(self):
        self.said = []

    def warn(self, text):
        self.said.append(text)


def fail_in_training(monkeypatch, session, setting):
    """Let the model raise under a setting once training has begun, and let the policy draw that setting."""
    real, run = chronostat.execution.trials.execute, session.runner.run
    now = []

    def watched(phase, index, request, chosen, **options):
        now[:] = [phase]
        return run(phase, index, request, chosen, **options)

    def execute(model, request, **options):
        if now == ["train"] and options["setting"] == setting:
            model.generate(**request.batch, max_new_tokens=1)  # it fails inside the call, so the call is counted
            raise ValueError("bad shapes")
        return real(model, request, **options)

    monkeypatch.setattr(session.runner, "run", watched)
    monkeypatch.setattr(chronostat.execution.trials, "execute", execute)


def test_every_trial_of_the_training_records_the_drift(stand_in):
    store = trained(stand_in)
    assert all(trial.drift is None for phase in ("warmup", "calibrate") for trial in store.trials(phase))
    for trial in store.trials("train"):
        assert trial.drift.point == 1.0  # the fake machine takes 22 ms for full, always
        assert trial.drift.low < 1 < trial.drift.high


def test_training_can_end_after_so_many_executed_seconds(stand_in):
    store = trained(stand_in, "train.trials=1000", "train.executed_seconds=0.5")
    last, before = store.steps()[-1], store.steps()[-2]
    assert before.executed_ms < 500 <= last.executed_ms
