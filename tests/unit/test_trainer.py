"""One training step: what is executed is what is learned from, and a resumed run repeats nothing."""

import pytest
import torch
from control_fixtures import BUDGETS, SPACE, FakeExecutions, differing, latency_fraction, make_bench, subject

import chronostat.trials
from chronostat.control.trainer import outcome_of
from chronostat.errors import MeasurementError, StoreError
from chronostat.files import read_tensors, write_tensors
from chronostat.records import Execution, Setting, StageTiming, Trial


@pytest.fixture
def executions(monkeypatch):
    fake = FakeExecutions()
    monkeypatch.setattr(chronostat.trials, "execute", fake)
    return fake


def watch(bench):
    """The outcomes that the learner is given from here on."""
    seen = []
    learn = bench.trainer.learner.learn
    bench.trainer.learner.learn = lambda outcome: (seen.append(outcome), learn(outcome))[1]
    return seen


def test_a_step_executes_each_distinct_setting_once_and_stores_the_trial(executions):
    bench = make_bench()
    step = bench.trainer.step(subject(0))
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
    bench.trainer.step(subject(0))
    settings = [SPACE.settings[i] for i in outcomes[0].settings.tolist()]
    # the anchor of the first trial takes 80 ms as the one before: the median of full is 80
    assert outcomes[0].latency.tolist() == pytest.approx([latency_fraction(setting) for setting in settings])
    assert bench.steps[0].latency_fraction == pytest.approx(float(outcomes[0].latency.mean()))
    assert bench.steps[0].quality == pytest.approx(float(outcomes[0].quality.mean()))


@pytest.mark.parametrize("learner", ["rloo", "direct"])
def test_altering_the_clock_alone_alters_the_latency_and_what_is_learned(executions, learner):
    ordinary, slow = make_bench(learner), make_bench(learner)
    outcomes, slow_outcomes = watch(ordinary), watch(slow)
    for bench in (ordinary, slow):
        ticking = bench.clock.advance_ms
        factor = 2 if bench is slow else 1
        bench.clock.advance_ms = lambda ms, ticking=ticking, factor=factor: ticking(factor * ms)
        bench.trainer.anchors.window_ms.extend([80.0] * 15)
        for index in range(2):
            bench.trainer.step(subject(index))
    assert torch.equal(outcomes[0].quality, slow_outcomes[0].quality)
    assert slow_outcomes[0].latency.tolist() == pytest.approx([2 * x for x in outcomes[0].latency.tolist()])
    assert differing(ordinary.trainer.learner.state(), slow.trainer.learner.state())


def test_the_controllers_own_time_is_charged(executions):
    bench = make_bench()
    outcomes = watch(bench)
    propose = bench.trainer.learner.propose
    bench.trainer.learner.propose = lambda *given: (bench.clock.advance_ms(1.6), propose(*given))[1]
    bench.trainer.step(subject(0))
    settings = [SPACE.settings[i] for i in outcomes[0].settings.tolist()]
    # 1.6 ms of 80 ms
    assert outcomes[0].latency.tolist() == pytest.approx([latency_fraction(setting) + 0.02 for setting in settings])
    assert all(execution.controller_ms == pytest.approx(1.6) for execution in bench.trials[0].executions)


def test_the_anchor_is_learned_from_only_if_it_was_drawn(executions):
    bench = make_bench()
    outcomes = watch(bench)
    for index in range(6):
        bench.trainer.step(subject(index))
    for trial, outcome in zip(bench.trials, outcomes, strict=True):
        drawn = [trial.executions[i].setting for i in trial.draws]
        assert [SPACE.settings[i] for i in outcome.settings.tolist()] == drawn
    assert bench.trials[0].anchor is not None


def test_drift_moves_the_denominator(executions):
    bench = make_bench(anchors_ms=[80.0] * 15)
    executions.full_ms = 160.0
    bench.trainer.runner.anchor_every_s = 0.0
    outcomes = watch(bench)
    for index in range(20):
        bench.trainer.step(subject(index))
    fractions = [latency_fraction(SPACE.settings[i]) for i in outcomes[-1].settings.tolist()]
    assert bench.trainer.anchors.full_ms == pytest.approx(160)
    assert outcomes[0].latency.tolist() == pytest.approx(
        [2 * latency_fraction(SPACE.settings[i]) for i in outcomes[0].settings.tolist()]
    )
    assert outcomes[-1].latency.tolist() == pytest.approx(fractions)


def test_failed_arms_leave_the_group(executions):
    failing = frozenset(setting for setting in SPACE.settings if setting["vision_tokens"] == 4)
    executions.fails = failing
    bench = make_bench()
    outcomes = watch(bench)
    for index in range(10):
        bench.trainer.step(subject(index))
    assert any(execution.invalid for trial in bench.trials for execution in trial.executions)
    learned = {SPACE.settings[i] for outcome in outcomes for i in outcome.settings.tolist()}
    assert learned
    assert not learned & failing
    assert all(bool(torch.isfinite(outcome.latency).all()) for outcome in outcomes)


def test_a_step_in_which_everything_failed_teaches_nothing(executions):
    executions.fails = frozenset(SPACE.settings)
    bench = make_bench()
    before = bench.trainer.learner.state()
    step = bench.trainer.step(subject(0))
    assert differing(before, bench.trainer.learner.state()) == []
    assert step.quality != step.quality  # there is none
    assert step.metrics == {}


def test_executed_ms_adds_up_what_ran(executions):
    bench = make_bench()
    for index in range(3):
        bench.trainer.step(subject(index))
    total = sum(execution.timing.total_ms for trial in bench.trials for execution in trial.executions)
    assert bench.trainer.executed_ms == pytest.approx(total)
    assert bench.steps[-1].executed_ms == pytest.approx(total)


@pytest.mark.parametrize("learner", ["rloo", "direct"])
def test_a_resumed_run_replays_what_is_stored_and_goes_on_bit_for_bit(executions, learner, tmp_path):
    whole = make_bench(learner)
    for index in range(4):
        whole.trainer.step(subject(index))
    write_tensors(tmp_path / "checkpoint.safetensors", *whole.trainer.state())
    for index in range(4, 9):
        whole.trainer.step(subject(index))
    executed = len(executions.calls)

    resumed = make_bench(learner)
    resumed.trainer.resume(*read_tensors(tmp_path / "checkpoint.safetensors"))
    resumed.trainer.replay(whole.trials)
    assert resumed.trainer.next_step == 4
    for index in range(4, 9):
        resumed.trainer.step(subject(index))

    assert len(executions.calls) == executed
    assert resumed.trials == []
    assert resumed.steps == whole.steps[4:]
    assert differing(whole.trainer.learner.state(), resumed.trainer.learner.state()) == []
    assert resumed.trainer.executed_ms == whole.trainer.executed_ms
    resumed.trainer.step(subject(9))
    assert len(executions.calls) > executed


def test_replaying_under_another_seed_is_refused(executions):
    bench, other = make_bench(), make_bench(seed=1)
    bench.trainer.step(subject(0))
    other.trainer.replay(bench.trials)
    with pytest.raises(
        StoreError, match="stored trial 0 does not continue the checkpoint; resume with the same config"
    ):
        other.trainer.step(subject(0))


def test_replaying_on_another_sample_is_refused(executions):
    bench, other = make_bench(), make_bench()
    bench.trainer.step(subject(0))
    other.trainer.replay(bench.trials)
    with pytest.raises(StoreError, match="stored trial 0"):
        other.trainer.step(subject(2))


def test_full_that_was_never_measured_is_no_denominator(executions):
    executions.fails = frozenset({SPACE.full})
    bench = make_bench(anchors_ms=[])
    with pytest.raises(MeasurementError, match="full was not measured yet"):
        bench.trainer.step(subject(0))


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
