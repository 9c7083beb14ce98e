"""One training step: what is executed is what is learned from, and a resumed run repeats nothing."""

import pytest
import torch

import chronostat.execution.trials
from chronostat.control.trainer import outcome_of
from chronostat.errors import MeasurementError, StoreError
from chronostat.records import Execution, Setting, StageTiming, Trial
from chronostat.tensors import read_tensors, write_tensors
from stand_ins.control_fixtures import (
    BUDGETS,
    SPACE,
    FakeExecutions,
    differing,
    latency_fraction,
    make_bench,
    trial_input,
)


@pytest.fixture
def executions(monkeypatch):
    fake = FakeExecutions()
    monkeypatch.setattr(chronostat.execution.trials, "execute", fake)
    return fake


def watch(bench):
    """The outcomes that the learner is given from here on."""
    seen = []
    learn = bench.trainer.learner.learn
    bench.trainer.learner.learn = lambda outcome: (seen.append(outcome), learn(outcome))[1]
    return seen


def test_a_step_executes_each_distinct_setting_once_and_stores_the_trial(executions):
    bench = make_bench()
    step = bench.trainer.step(trial_input(0))
    trial = bench.trials[0]
    assert trial.phase == "train"
    assert len(trial.draws) == 4
    assert [execution.setting for execution in trial.executions] == executions.calls
    assert len(set(executions.calls)) == len(executions.calls)
    assert trial.budget in BUDGETS
    assert bench.steps == [step]
    assert bench.trainer.next_step == 1


def test_the_reward_uses_exactly_the_recorded_latency(executions):
    bench = make_bench()
    outcomes = watch(bench)
    bench.trainer.step(trial_input(0))
    settings = [SPACE.settings[i] for i in outcomes[0].settings.tolist()]
    # the anchor of the first trial takes 80 ms as the one before: the median of full is 80
    assert outcomes[0].latency.tolist() == pytest.approx([latency_fraction(setting) for setting in settings])
    assert bench.steps[0].latency_fraction == pytest.approx(float(outcomes[0].latency.mean()))
    assert bench.steps[0].quality == pytest.approx(float(outcomes[0].quality.mean()))


@pytest.mark.parametrize("learner", ["rloo", "direct"])
def test_altering_the_clock_alone_alters_the_latency_and_what_is_learned(executions, learner):
    ordinary, slow = make_bench(learner, latency="raw"), make_bench(learner, latency="raw")
    outcomes, slow_outcomes = watch(ordinary), watch(slow)
    for bench in (ordinary, slow):
        ticking = bench.clock.advance_ms
        factor = 2 if bench is slow else 1
        bench.clock.advance_ms = lambda ms, ticking=ticking, factor=factor: ticking(factor * ms)
        for index in range(2):
            bench.trainer.step(trial_input(index))
    assert torch.equal(outcomes[0].quality, slow_outcomes[0].quality)
    assert slow_outcomes[0].latency.tolist() == pytest.approx([2 * x for x in outcomes[0].latency.tolist()])
    assert differing(ordinary.trainer.learner.state(), slow.trainer.learner.state())


def test_the_controllers_own_time_is_charged(executions):
    bench = make_bench()
    outcomes = watch(bench)
    propose = bench.trainer.learner.propose
    bench.trainer.learner.propose = lambda *given: (bench.clock.advance_ms(1.6), propose(*given))[1]
    bench.trainer.step(trial_input(0))
    settings = [SPACE.settings[i] for i in outcomes[0].settings.tolist()]
    # 1.6 ms of 80 ms
    assert outcomes[0].latency.tolist() == pytest.approx([latency_fraction(setting) + 0.02 for setting in settings])
    assert all(execution.controller_ms == pytest.approx(1.6) for execution in bench.trials[0].executions)


def test_the_anchor_is_learned_from_only_if_it_was_drawn(executions):
    bench = make_bench()
    outcomes = watch(bench)
    for index in range(6):
        bench.trainer.step(trial_input(index))
    for trial, outcome in zip(bench.trials, outcomes, strict=True):
        drawn = [trial.executions[i].setting for i in trial.draws]
        assert [SPACE.settings[i] for i in outcome.settings.tolist()] == drawn
    assert bench.trials[0].anchor is not None


@pytest.mark.parametrize(("latency", "last"), [("drift_corrected", 1.0), ("raw", 2.0)])
def test_drift_moves_the_denominator_if_it_is_asked_for(executions, latency, last):
    bench = make_bench(latency=latency)
    bench.trainer.runner.anchor_every_s = 0.0
    for index in range(6):
        bench.trainer.step(trial_input(index))
    executions.full_ms = 160.0
    outcomes = watch(bench)
    for index in range(6, 40):
        bench.trainer.step(trial_input(index))
    fractions = [latency_fraction(SPACE.settings[i]) for i in outcomes[-1].settings.tolist()]
    # in the first trial after the step nothing is known of it: twice what it was
    first = [2 * latency_fraction(SPACE.settings[i]) for i in outcomes[0].settings.tolist()]
    assert outcomes[0].latency.tolist() == pytest.approx(first, rel=0.01)
    assert outcomes[-1].latency.tolist() == pytest.approx([last * fraction for fraction in fractions], rel=0.03)
    # recorded is what was measured, with the drift beside it
    assert bench.trials[-1].drift.point == pytest.approx(2, rel=0.03)
    anchor = bench.trials[-1].executions[bench.trials[-1].anchor]
    assert anchor.timing.prefill_ms == pytest.approx(160)


def test_failed_arms_leave_the_group(executions):
    failing = frozenset(setting for setting in SPACE.settings if setting["vision_tokens"] == 2)
    executions.fails = failing
    bench = make_bench()
    outcomes = watch(bench)
    for index in range(10):
        bench.trainer.step(trial_input(index))
    assert any(execution.invalid for trial in bench.trials for execution in trial.executions)
    learned = {SPACE.settings[i] for outcome in outcomes for i in outcome.settings.tolist()}
    assert learned
    assert not learned & failing
    assert all(bool(torch.isfinite(outcome.latency).all()) for outcome in outcomes)


def test_a_step_in_which_everything_failed_teaches_nothing(executions):
    executions.fails = frozenset(SPACE.settings)
    bench = make_bench()
    before = bench.trainer.learner.state()
    step = bench.trainer.step(trial_input(0))
    assert differing(before, bench.trainer.learner.state()) == []
    assert step.quality != step.quality  # there is none
    assert step.metrics == {}


def test_executed_ms_adds_up_what_ran(executions):
    bench = make_bench()
    for index in range(3):
        bench.trainer.step(trial_input(index))
    total = sum(execution.timing.total_ms for trial in bench.trials for execution in trial.executions)
    assert bench.trainer.executed_ms == pytest.approx(total)
    assert bench.steps[-1].executed_ms == pytest.approx(total)


@pytest.mark.parametrize("learner", ["rloo", "direct"])
def test_a_resumed_run_replays_what_is_stored_and_goes_on_bit_for_bit(executions, learner, tmp_path):
    whole = make_bench(learner)
    for index in range(4):
        whole.trainer.step(trial_input(index))
    write_tensors(tmp_path / "checkpoint.safetensors", *whole.trainer.state())
    for index in range(4, 9):
        whole.trainer.step(trial_input(index))
    executed = len(executions.calls)

    resumed = make_bench(learner)
    resumed.trainer.resume(*read_tensors(tmp_path / "checkpoint.safetensors"))
    resumed.trainer.replay(whole.trials)
    assert resumed.trainer.next_step == 4
    for index in range(4, 9):
        resumed.trainer.step(trial_input(index))

    assert len(executions.calls) == executed
    assert resumed.trials == []
    assert resumed.steps == whole.steps[4:]
    assert differing(whole.trainer.learner.state(), resumed.trainer.learner.state()) == []
    assert resumed.trainer.executed_ms == whole.trainer.executed_ms
    resumed.trainer.step(trial_input(9))
    assert len(executions.calls) > executed


def test_replaying_under_another_seed_is_refused(executions):
    bench, other = make_bench(), make_bench(seed=1)
    bench.trainer.step(trial_input(0))
    other.trainer.replay(bench.trials)
    with pytest.raises(
        StoreError, match="stored trial 0 does not continue the checkpoint; resume with the same config"
    ):
        other.trainer.step(trial_input(0))


def test_replaying_on_another_sample_is_refused(executions):
    bench, other = make_bench(), make_bench()
    bench.trainer.step(trial_input(0))
    other.trainer.replay(bench.trials)
    with pytest.raises(StoreError, match="stored trial 0"):
        other.trainer.step(trial_input(2))


def test_full_that_fails_three_times_stops_the_run(executions):
    executions.fails = frozenset({SPACE.full})
    bench = make_bench()
    for index in range(2):
        bench.trainer.step(trial_input(index))
    with pytest.raises(MeasurementError, match=r"full failed 3 times in a row, .* out of memory; the run stops"):
        bench.trainer.step(trial_input(2))
    assert len(bench.trials) == 3  # all of it is stored


@pytest.mark.parametrize("checkpoint_after", [0, 2])
def test_a_run_that_stopped_since_full_failed_can_go_on(executions, checkpoint_after):
    executions.fails = frozenset({SPACE.full})
    stopped = make_bench()
    for index in range(checkpoint_after):
        stopped.trainer.step(trial_input(index))
    tensors, numbers = stopped.trainer.state()
    for index in range(checkpoint_after, 2):
        stopped.trainer.step(trial_input(index))
    with pytest.raises(MeasurementError, match="full failed 3 times in a row"):
        stopped.trainer.step(trial_input(2))

    executions.fails = frozenset()  # whoever ran it has freed the memory
    resumed = make_bench()
    resumed.trainer.resume(tensors, numbers)
    resumed.trainer.replay(stopped.trials)
    for index in range(checkpoint_after, 5):
        resumed.trainer.step(trial_input(index))
    assert [trial.index for trial in resumed.trials] == [3, 4]  # the stored ones are not executed again
    assert resumed.trainer.failures.streaks[0] == 0


@pytest.mark.parametrize("learner", ["rloo", "direct"])
def test_a_setting_that_fails_three_times_is_never_drawn_again(executions, learner):
    executions.fails = failing = frozenset({SPACE.settings[4], SPACE.settings[7]})
    said = []
    bench = make_bench(learner, take_out=lambda setting, reason: said.append((setting, reason)))
    for index in range(60):
        bench.trainer.step(trial_input(index))
    assert said
    for setting, reason in said:
        assert setting in failing
        assert reason == "RuntimeError: out of memory"
        failed = [e.setting == setting for trial in bench.trials for e in trial.executions]
        assert sum(failed) == 3
    learner = bench.trainer.learner
    settle(learner, bench)
    chosen = {
        SPACE.settings[learner.decide(bench.trainer.observer(trial_input(i)), b)] for i in (0, 1) for b in BUDGETS
    }
    assert not chosen & {setting for setting, _ in said}


def settle(learner, bench):
    learner.settle(torch.stack([bench.trainer.observer(trial_input(i)) for i in range(20)]))


def test_three_failures_in_a_row_are_counted_over_trials_and_a_success_in_between_resets(executions):
    bench = make_bench()
    failures = bench.trainer.failures
    fails = {True: frozenset({SPACE.settings[3]}), False: frozenset()}
    for index, failing in enumerate((True, True, False, True, True)):
        executions.fails = fails[failing]
        failures.add(bench.trainer.runner.run("train", index, trial_input(index), [SPACE.settings[3]]))
    assert (failures.streaks[3], failures.taken_out) == (2, [])
    executions.fails = fails[True]
    assert failures.add(bench.trainer.runner.run("train", 5, trial_input(5), [SPACE.settings[3]])) == [3]
    assert SPACE.settings[3] not in failures.legal_settings


@pytest.mark.parametrize("learner", ["rloo", "direct"])
def test_what_was_taken_out_is_in_the_checkpoint(executions, learner, tmp_path):
    executions.fails = frozenset(SPACE.settings[6:])
    whole = make_bench(learner)
    for index in range(30):
        whole.trainer.step(trial_input(index))
    assert whole.trainer.failures.taken_out
    write_tensors(tmp_path / "checkpoint.safetensors", *whole.trainer.state())
    resumed = make_bench(learner)
    resumed.trainer.resume(*read_tensors(tmp_path / "checkpoint.safetensors"))
    assert resumed.trainer.failures.streaks == whole.trainer.failures.streaks
    assert resumed.trainer.failures.reasons == whole.trainer.failures.reasons
    for bench in (whole, resumed):
        generator = torch.Generator().manual_seed(3)
        drawn = bench.trainer.learner.propose(bench.trainer.observer(trial_input(0)), BUDGETS[0], 400, generator)
        assert not set(drawn.tolist()) & set(whole.trainer.failures.taken_out)
    assert differing(whole.trainer.learner.state(), resumed.trainer.learner.state()) == []


def test_repeats_of_a_setting_give_the_median(executions):
    bench = make_bench(repeats=3)
    outcomes = watch(bench)
    bench.trainer.step(trial_input(0))
    trial = bench.trials[0]
    drawn = {trial.executions[i].setting for i in trial.draws}
    assert all(sum(e.setting == setting for e in trial.executions) == 3 for setting in drawn)
    assert len(outcomes[0].settings) == 4
    settings = [SPACE.settings[i] for i in outcomes[0].settings.tolist()]
    assert outcomes[0].latency.tolist() == pytest.approx([latency_fraction(setting) for setting in settings])


def test_outcome_leaves_out_draws_without_quality_or_timing():
    def execution(name, **values):
        return Execution(sample_id="a", split="train", setting=Setting(vision_tokens=name), **values)

    timing = StageTiming(source="measured", total_ms=50.0, new_tokens=1, decode_steps=0, prefill_ms=40.0)
    trial = Trial(
        phase="train",
        index=0,
        sample_id="a",
        executions=(
            execution(4, timing=timing, quality=1.0, controller_ms=0.8),
            execution(2, timing=None, invalid="out of memory"),
            execution(1, timing=timing, quality=None),
        ),
        draws=(2, 0, 1, 0),
    )
    outcome = outcome_of(trial, torch.tensor([6, 0, 3, 0]), torch.zeros(2), BUDGETS[0], "prefill_ms", 80.0)
    assert outcome.settings.tolist() == [0, 0]
    assert outcome.quality.tolist() == [1.0, 1.0]
    assert outcome.latency.tolist() == pytest.approx([40.8 / 80] * 2)
