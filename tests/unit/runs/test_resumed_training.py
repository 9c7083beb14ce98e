"""A training that was ended goes on as if nothing had happened: the same trials in the same order, the same controller.

Time is that of the fake clock, so that an execution that is made by another process measures the same.
"""

import dataclasses
import os
import shutil
import signal
import traceback

import numpy as np
import pytest

from chronostat.control.controller_files import FOLDER
from chronostat.errors import StoreError
from chronostat.runs.training import train
from chronostat.tensors import read_tensors
from stand_ins.controllers import policy_of
from stand_ins.runs import StandIn, interrupt_after
from unit.runs.test_store_crashes import Killed, dying_at

pytestmark = [
    pytest.mark.slow,  # whole runs, trained
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # one thread computes
]

PHASES = ("calibrate", "select", "train")
NO_ANCHORS = "train.anchor_every_s=1000"  # which trial one is due in depends on when its process began


def arrays(store):
    return read_tensors(policy_of(store.folder / FOLDER))


def trials(store, phase=None):
    """What was drawn and measured, without when."""
    return [dataclasses.replace(trial, started_s=0.0, drift=None) for trial in store.trials(phase)]


def assert_same_controller(store, whole):
    ours, theirs = arrays(store), arrays(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not np.array_equal(value, theirs[name])] == []
    for phase in PHASES:
        assert trials(store, phase) == trials(whole, phase)
    assert store.metadata["calibration"] == whole.metadata["calibration"]
    assert store.metadata["budget_range"] == whole.metadata["budget_range"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patches:
        yield StandIn(tmp_path_factory.mktemp("resumed"), patches)


@pytest.fixture(scope="module")
def whole(machine):
    """The stores of runs that nothing ended, by learner."""
    for learner in ("direct", "rloo"):
        with machine.session(NO_ANCHORS, f"train.learner={learner}", name=f"whole-{learner}") as session:
            train(session)
    return {learner: machine.store(f"whole-{learner}") for learner in ("direct", "rloo")}


def kill_in(machine, name, phase, index, overrides):
    """Train in a process of its own that is killed by kill -9 while it executes a trial of a phase."""
    process = os.fork()
    if not process:
        try:
            with machine.session(*overrides, name=name) as session:
                run = session.runner.run

                def deadly(now, number, *given, **options):
                    if (now, number) == (phase, index):
                        session.runner.model.generate = lambda **_: os.kill(os.getpid(), signal.SIGKILL)
                    return run(now, number, *given, **options)

                session.runner.run = deadly
                train(session)
        except BaseException:  # noqa: BLE001 - it is said, or nobody would know why it was not killed
            traceback.print_exc()
        finally:
            os._exit(1)  # nothing of the test's own goes on in here
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(("phase", "index"), [("calibrate", 1), ("select", 2), ("train", 4)])
def test_a_run_that_was_killed_ends_with_the_same_controller(machine, whole, phase, index):
    name, overrides = f"killed-{phase}", (NO_ANCHORS, "train.learner=direct")
    kill_in(machine, name, phase, index, overrides)
    store = machine.store(name)
    assert [trial.index for trial in store.trials(phase)] == list(range(index))
    assert store.trials() != []
    assert not store.holds(f"{FOLDER}/controller.json")
    before = store.trials()
    with machine.reopened(*overrides, name=name) as session:
        train(session)
    assert_same_controller(store, whole["direct"])
    assert store.trials()[: len(before)] == before
    for each, took in store.metadata["phases"].items():
        calls = sum(len(trial.executions) for trial in store.trials(each))
        if each in {phase, "warmup"}:  # nobody could count the calls of the process that was killed; two warmed up
            assert took.get("generate_calls", calls) == calls
        else:
            assert took["generate_calls"] == calls


def test_a_policy_gradient_that_was_interrupted_ends_with_the_same_controller(machine, whole, monkeypatch):
    """In this process: torch refuses to differentiate in one that was forked where gradients were computed before."""
    overrides = (NO_ANCHORS, "train.learner=rloo")

    def pressed(**_):
        raise KeyboardInterrupt

    with machine.session(*overrides, name="pressed-rloo") as session, monkeypatch.context() as patched:
        run = session.runner.run

        def deadly(now, number, *given, **options):
            if (now, number) == ("train", 4):
                patched.setattr(session.runner.model, "generate", pressed)
            return run(now, number, *given, **options)

        session.runner.run = deadly
        with pytest.raises(KeyboardInterrupt):
            train(session)
    store = machine.store("pressed-rloo")
    assert [trial.index for trial in store.trials("train")] == [0, 1, 2, 3]
    with machine.reopened(*overrides, name="pressed-rloo") as session:
        train(session)
    assert_same_controller(store, whole["rloo"])


def test_a_run_whose_trials_are_all_stored_executes_nothing_more(machine, whole):
    folder = shutil.copytree(whole["direct"].folder, machine.folder / "all")
    shutil.rmtree(folder / FOLDER)
    with machine.reopened(NO_ANCHORS, name="all") as session:
        session.store.compact()
        train(session)
        warmed_up = sum(len(trial.executions) for trial in session.store.trials("warmup")) // 2
        assert session.counter.calls == warmed_up
    assert_same_controller(machine.store("all"), whole["direct"])


def test_a_step_that_was_not_stored_any_more_is_stored_when_its_trial_is_learned_from(machine, whole):
    folder = shutil.copytree(whole["direct"].folder, machine.folder / "steps")
    shutil.rmtree(folder / FOLDER)
    (last, *_) = sorted((folder / "steps").glob("*.parquet"), reverse=True)
    last.unlink()
    with machine.reopened(NO_ANCHORS, name="steps") as session:
        train(session)
    assert machine.store("steps").steps() == whole["direct"].steps()


@pytest.mark.parametrize("phase", PHASES)
def test_trials_of_other_samples_are_refused(machine, whole, monkeypatch, phase):
    folder = shutil.copytree(whole["direct"].folder, machine.folder / f"other-{phase}")
    shutil.rmtree(folder / FOLDER)
    split = "validation" if phase == "select" else "train"
    inputs = machine.batches.split
    moved = {name: [*inputs(name)[1:], inputs(name)[0]] for name in ("train", "validation")}
    first = moved["train"][0]
    if phase == "train":  # the calibration's samples are in their place
        moved["train"] = [*inputs("train")[:2], *reversed(inputs("train")[2:])]
        first = None
    monkeypatch.setattr(machine.batches, "split", lambda name: moved[name] if name == split else inputs(name))
    with machine.reopened(NO_ANCHORS, name=folder.name) as session:
        message = (
            "is not the one of step" if first is None else f"stored {phase} trial 0 is of sample '{split}-0', which"
        )
        with pytest.raises(StoreError, match=rf"{message}.*; resume with the same config and data"):
            train(session)


def test_an_interrupted_trial_is_made_again(machine, whole, monkeypatch):
    with machine.session(NO_ANCHORS, name="pressed") as session, monkeypatch.context() as pressed:
        run = session.runner.run

        def watched(phase, index, *given, **options):
            if (phase, index) == ("train", 2):
                interrupt_after(pressed, machine.model, 1)
            return run(phase, index, *given, **options)

        session.runner.run = watched
        with pytest.raises(KeyboardInterrupt):
            train(session)
    store = machine.store("pressed")
    assert len(store.trials("train")) == 2
    assert store.metadata["phases"]["train"]["unfinished_calls"] > 0
    with machine.reopened(NO_ANCHORS, name="pressed") as session:
        train(session)
    assert_same_controller(store, whole["direct"])
    counted = store.metadata["phases"]["train"]["generate_calls"]
    assert counted == sum(len(trial.executions) for trial in store.trials("train"))


def test_training_may_die_at_any_write(machine, whole, monkeypatch):
    """kill -9 at the n-th change of the disk: the run goes on, or begins, and learns what an undisturbed one does."""
    survived, call = False, 3
    while not survived:
        with dying_at(monkeypatch, call):
            try:
                with machine.session(NO_ANCHORS, name="dying") as session:
                    train(session)
                survived = True
            except Killed:
                """As if it had never come back."""
        if not survived:
            with machine.reopened(NO_ANCHORS, name="dying") as session:
                train(session)
        store = machine.store("dying")
        assert_same_controller(store, whole["direct"])
        shutil.rmtree(store.folder)
        call += 83
    assert call > 200
