"""One training step: what is executed is what is learned from, and a resumed run repeats nothing."""

from dataclasses import replace

import numpy as np
import pytest

import chronostat.execution.trials
from chronostat.control.learners import LEARNERS
from chronostat.control.trainer import outcome_of
from chronostat.errors import MeasurementError, StoreError
from chronostat.records import Execution, Setting, StageTiming, Trial
from stand_ins.control_fixtures import (
    BUDGETS,
    SPACE,
    FakeExecutions,
    begin,
    differing,
    frozen,
    known,
    latency_fraction,
    make_bench,
    observation,
    trial_input,
)

each = pytest.mark.parametrize("learner", LEARNERS)


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


def told(bench):
    """The answers that the evidence is given from here on."""
    seen = []
    add = bench.trainer.evidence.add
    bench.trainer.evidence.add = lambda observation, answers: (seen.append(answers), add(observation, answers))[1]
    return seen


def steps(bench, count, first=0):
    return [bench.trainer.step(trial_input(index)) for index in range(first, first + count)]


def fractions_of(settings):
    return [latency_fraction(SPACE.settings[i]) for i in settings.tolist()]


# a step


def test_a_step_executes_each_distinct_setting_once_and_stores_the_trial(executions):
    bench = make_bench()
    (step,) = steps(bench, 1)
    trial = bench.trials[0]
    assert trial.phase == "train"
    assert len(trial.draws) == 4
    assert [execution.setting for execution in trial.executions] == executions.calls
    assert len(set(executions.calls)) == len(executions.calls)
    assert trial.budget in BUDGETS
    assert bench.steps == [step]
    assert bench.trainer.next_step == 1


@each
def test_a_trial_keeps_the_chance_of_each_draw_and_the_version_that_drew_it(executions, learner):
    bench = make_bench(learner)
    outcomes, proposals = watch(bench), []
    propose = bench.trainer.learner.propose
    bench.trainer.learner.propose = lambda *given: (proposals.append(propose(*given)), proposals[-1])[1]
    steps(bench, 3)
    for trial, outcome, proposal in zip(bench.trials, outcomes, proposals, strict=True):
        assert trial.probabilities == tuple(proposal.probabilities.tolist())
        assert trial.policy_version == proposal.version
        assert outcome.probabilities.tolist() == proposal.probabilities.tolist()
        assert [trial.executions[i].setting for i in trial.draws] == [
            SPACE.settings[i] for i in proposal.settings.tolist()
        ]


def test_the_reward_uses_exactly_the_recorded_latency(executions):
    bench = make_bench()
    outcomes = watch(bench)
    steps(bench, 1)
    # the anchor of the first trial takes 80 ms as the one before: the median of full is 80
    assert outcomes[0].latency.tolist() == pytest.approx(fractions_of(outcomes[0].settings))
    assert bench.steps[0].latency_fraction == pytest.approx(float(outcomes[0].latency.mean()))
    assert bench.steps[0].quality == pytest.approx(float(outcomes[0].quality.mean()))


@each
def test_altering_the_clock_alone_alters_the_latency_and_what_is_learned(executions, learner):
    ordinary, slow = make_bench(learner, latency="raw"), make_bench(learner, latency="raw")
    outcomes, slow_outcomes = watch(ordinary), watch(slow)
    for bench in (ordinary, slow):
        ticking = bench.clock.advance_ms
        factor = 2 if bench is slow else 1
        bench.clock.advance_ms = lambda ms, ticking=ticking, factor=factor: ticking(factor * ms)
        steps(bench, 2)
    assert np.array_equal(outcomes[0].quality, slow_outcomes[0].quality)
    assert slow_outcomes[0].latency == pytest.approx(2 * outcomes[0].latency)
    changed = differing(of(ordinary), of(slow))
    assert "forecast.base" in changed


def of(bench):
    return known(bench.trainer.evidence, bench.trainer.learner)


def test_the_controllers_own_time_is_charged_to_the_draw_and_not_to_the_setting(executions):
    bench = make_bench()
    outcomes, answers = watch(bench), told(bench)
    propose = bench.trainer.learner.propose
    bench.trainer.learner.propose = lambda *given: (bench.clock.advance_ms(1.6), propose(*given))[1]
    steps(bench, 1)
    # 1.6 ms of 80 ms
    assert outcomes[0].latency == pytest.approx(np.array(fractions_of(outcomes[0].settings)) + 0.02)
    assert answers[0].latency.tolist() == pytest.approx(fractions_of(answers[0].settings))
    assert all(execution.controller_ms == pytest.approx(1.6) for execution in bench.trials[0].executions)


def test_the_anchor_is_evidence_and_no_draw(executions):
    bench = make_bench()
    outcomes, answers = watch(bench), told(bench)
    steps(bench, 6)
    for trial, outcome, each in zip(bench.trials, outcomes, answers, strict=True):
        drawn = [trial.executions[i].setting for i in trial.draws]
        assert [SPACE.settings[i] for i in outcome.settings.tolist()] == drawn
        assert [SPACE.settings[i] for i in each.settings.tolist()] == [e.setting for e in trial.executions]
    assert bench.trials[0].anchor is not None


@pytest.mark.parametrize(("latency", "last"), [("drift_corrected", 1.0), ("raw", 2.0)])
def test_drift_moves_the_denominator_if_it_is_asked_for(executions, latency, last):
    bench = make_bench(latency=latency)
    bench.trainer.runner.anchor_every_s = 0.0
    steps(bench, 6)
    executions.full_ms = 160.0
    outcomes = watch(bench)
    steps(bench, 34, first=6)
    # in the first trial after the step nothing is known of it: twice what it was
    first = [2 * fraction for fraction in fractions_of(outcomes[0].settings)]
    assert outcomes[0].latency.tolist() == pytest.approx(first, rel=0.01)
    assert outcomes[-1].latency == pytest.approx(last * np.array(fractions_of(outcomes[-1].settings)), rel=0.03)
    # recorded is what was measured, with the drift beside it
    assert bench.trials[-1].drift.point == pytest.approx(2, rel=0.03)
    anchor = bench.trials[-1].executions[bench.trials[-1].anchor]
    assert anchor.timing.prefill_ms == pytest.approx(160)
    # what is handed to the controller holds the drift once, however it was learned
    assert bench.trainer.full_now_ms() == pytest.approx(160, rel=0.25)


def test_the_first_execution_of_a_trial_finds_caches_cold_unless_it_failed(executions):
    bench = make_bench(begun=False)
    trial = make_bench(begun=False).trainer.select(0, trial_input(0))
    seen = told(bench)
    bench.trainer.absorb(trial, observation_of(bench))
    failed = replace(trial.executions[0], timing=None, quality=None, invalid="out of memory")
    bench.trainer.absorb(replace(trial, executions=(failed, *trial.executions[1:])), observation_of(bench))
    assert [each.first for each in seen] == [0, None]
    assert [len(each.settings) for each in seen] == [len(trial.executions), len(trial.executions) - 1]


def test_executed_ms_and_executions_add_up_what_ran(executions):
    bench = make_bench()
    steps(bench, 3)
    total = sum(execution.timing.total_ms for trial in bench.trials for execution in trial.executions)
    assert bench.trainer.executed_ms == pytest.approx(total)
    assert bench.steps[-1].executed_ms == pytest.approx(total)
    assert 0 < bench.trainer.executions <= len(executions.calls)


def test_repeats_of_a_setting_give_the_median_and_each_is_evidence(executions):
    bench = make_bench(repeats=3)
    outcomes, answers = watch(bench), told(bench)
    steps(bench, 1)
    trial = bench.trials[0]
    drawn = {trial.executions[i].setting for i in trial.draws}
    assert all(sum(e.setting == setting for e in trial.executions) == 3 for setting in drawn)
    assert len(outcomes[0].settings) == 4
    assert len(answers[0].settings) == len(trial.executions)
    assert outcomes[0].latency.tolist() == pytest.approx(fractions_of(outcomes[0].settings))


# the selection


def test_the_selection_executes_some_settings_drawn_alike(executions):
    bench = make_bench(begun=False)
    trial = bench.trainer.select(0, trial_input(0))
    assert trial.phase == "select"
    assert len(trial.draws) == 6
    assert trial.executions[trial.draws[0]].setting == SPACE.full
    # full is one of six, the others share what is left
    assert trial.probabilities == pytest.approx((1 / 6, *(5 / 6 / 8,) * 5))
    assert (trial.policy_version, trial.budget) == (None, None)
    assert bench.trainer.evidence.quality.count == len(trial.executions)
    assert bench.steps == []


@each
def test_a_learner_that_begins_learns_from_what_was_drawn_alike_before(executions, learner):
    bench = make_bench(begun=False)
    for index in range(5):
        bench.trainer.select(index, trial_input(index))
    seen = []
    learn = LEARNERS[learner].learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LEARNERS[learner], "learn", lambda self, outcome: (seen.append(outcome), learn(self, outcome))[1])
        begin(bench, learner)
    assert [len(outcome.settings) for outcome in seen] == [len(trial.draws) for trial in bench.trials]
    assert len(seen) == 5
    assert all(outcome.budget is None for outcome in seen)
    assert [tuple(outcome.probabilities) for outcome in seen] == [trial.probabilities for trial in bench.trials]


# what was stored


@each
def test_whoever_learns_from_the_stored_trials_knows_the_same_bit_for_bit(executions, learner):
    whole = make_bench(learner, begun=False)
    for index in range(4):
        whole.trainer.select(index, trial_input(index))
    begin(whole, learner)
    steps(whole, 5)
    executed = len(executions.calls)

    resumed = make_bench(learner, begun=False)
    for trial in whole.trials[:4]:
        resumed.trainer.absorb(trial, resumed.trainer.observer.seen(trial_input(trial.index)), earlier=True)
    begin(resumed, learner)
    for trial in whole.trials[4:]:
        resumed.trainer.relearn(trial, trial_input(trial.index))

    assert len(executions.calls) == executed  # nothing was executed again
    assert resumed.trials == []
    assert resumed.steps == whole.steps
    assert resumed.trainer.executed_ms == whole.trainer.executed_ms
    assert resumed.trainer.executions == whole.trainer.executions
    for bench in (whole, resumed):
        bench.trainer.learner.finish()
    assert differing(of(whole), of(resumed)) == []
    proposals = [
        bench.trainer.learner.propose(observation_of(bench), BUDGETS[3], 20, np.random.default_rng(0))
        for bench in (whole, resumed)
    ]
    assert np.array_equal(proposals[0].settings, proposals[1].settings)
    assert np.array_equal(proposals[0].probabilities, proposals[1].probabilities)
    assert proposals[0].version == proposals[1].version


def observation_of(bench):
    return bench.trainer.observer(trial_input(0))


def test_a_trial_of_another_step_or_sample_is_refused(executions):
    bench = make_bench()
    steps(bench, 2)
    first, second = bench.trials
    with pytest.raises(
        StoreError, match="stored trial 1 of sample 's1' is not the one of step 0; resume with the same config and data"
    ):
        make_bench().trainer.relearn(second, trial_input(1))
    with pytest.raises(StoreError, match="stored trial 0 of sample 's0' is not the one of step 0"):
        make_bench().trainer.relearn(first, trial_input(2))


# what failed, what was disturbed


def test_failed_arms_leave_the_group(executions):
    executions.fails = failing = frozenset(s for s in SPACE.settings if s["vision_tokens"] == 2)
    bench = make_bench()
    outcomes, answers = watch(bench), told(bench)
    steps(bench, 10)
    assert any(execution.invalid for trial in bench.trials for execution in trial.executions)
    learned = {SPACE.settings[i] for found in (*outcomes, *answers) for i in found.settings.tolist()}
    assert learned
    assert not learned & failing
    assert all(np.isfinite(outcome.latency).all() for outcome in outcomes)


def test_a_step_in_which_everything_failed_teaches_nothing(executions):
    executions.fails = frozenset(SPACE.settings)
    bench = make_bench()
    before = of(bench)
    (step,) = steps(bench, 1)
    assert differing(before, of(bench)) == []
    assert step.quality != step.quality  # there is none
    assert step.metrics == {}


def disturbed(trial, *positions):
    return replace(
        trial,
        executions=tuple(
            replace(e, disturbed="stolen CPU time 20 ms" if i in positions else None)
            for i, e in enumerate(trial.executions)
        ),
    )


def test_disturbed_latencies_are_left_out_of_the_forecast_and_their_answers_are_not(executions):
    bench = make_bench(begun=False)
    trial = make_bench(begun=False).trainer.select(0, trial_input(0))
    answers = told(bench)
    for index in range(2):
        bench.trainer.absorb(replace(trial, index=index), observation_of(bench))
    bench.trainer.absorb(disturbed(trial, 0, 2), observation_of(bench))
    finite = [np.isfinite(each.latency).tolist() for each in answers]
    assert all(finite[0])
    assert all(finite[1])
    assert [i for i, kept in enumerate(finite[2]) if not kept] == [0, 2]
    assert np.isfinite(answers[2].quality).all()
    # a reward is what was measured
    assert len(bench.trainer._alike[2].settings) == 6


def test_where_most_are_disturbed_that_is_what_this_machine_is_like(executions):
    bench = make_bench(begun=False)
    trial = make_bench(begun=False).trainer.select(0, trial_input(0))
    answers = told(bench)
    for index in range(3):
        whole = range(len(trial.executions))
        bench.trainer.absorb(disturbed(replace(trial, index=index), *whole), observation_of(bench))
    assert all(np.isfinite(each.latency).all() for each in answers)


def test_a_trial_whose_every_latency_was_disturbed_teaches_quality_alone(executions):
    bench = make_bench()
    trial = make_bench(begun=False).trainer.select(0, trial_input(0))
    for index in range(3):
        bench.trainer.absorb(replace(trial, index=index), observation_of(bench))
    before = bench.trainer.evidence.latency.count, bench.trainer.evidence.quality.count
    bench.trainer.absorb(disturbed(trial, *range(len(trial.executions))), observation_of(bench))
    after = bench.trainer.evidence.latency.count, bench.trainer.evidence.quality.count
    assert after == (before[0], before[1] + len(trial.executions))


def test_full_that_fails_three_times_stops_the_run(executions):
    executions.fails = frozenset({SPACE.full})
    bench = make_bench()
    steps(bench, 2)
    with pytest.raises(
        MeasurementError, match=r"full failed 3 times in a row, .* out of memory\. Free what the model needs, or raise"
    ):
        bench.trainer.step(trial_input(2))
    assert len(bench.trials) == 3  # all of it is stored


def test_a_run_that_stopped_since_full_failed_can_go_on(executions):
    executions.fails = frozenset({SPACE.full})
    stopped = make_bench()
    steps(stopped, 2)
    with pytest.raises(MeasurementError, match="full failed 3 times in a row"):
        stopped.trainer.step(trial_input(2))

    executions.fails = frozenset()  # whoever ran it has freed the memory
    resumed = make_bench()
    for trial in stopped.trials:
        resumed.trainer.relearn(trial, trial_input(trial.index))
    steps(resumed, 2, first=3)
    assert [trial.index for trial in resumed.trials] == [3, 4]  # the stored ones are not executed again
    assert resumed.trainer.failures.streaks[0] == 0


@each
def test_a_setting_that_fails_three_times_leaves(executions, learner):
    executions.fails = failing = frozenset({SPACE.settings[2], SPACE.settings[6], SPACE.settings[8]})
    said = []
    bench = make_bench(learner, take_out=lambda setting, reason: said.append((setting, reason)))
    steps(bench, 25)
    assert said
    for setting, reason in said:
        assert setting in failing
        assert reason == "RuntimeError: out of memory"
        assert executions.calls.count(setting) == 3
    trainer = bench.trainer
    trainer.learner.finish()
    legal = np.ones(len(SPACE), dtype=bool)
    legal[trainer.failures.taken_out] = False
    policy = frozen(learner, trainer.evidence, trainer.learner, legal)
    chosen = {
        SPACE.settings[policy.decide(trainer.observer(trial_input(i)), budget, 0.5)]
        for i in (0, 1)
        for budget in BUDGETS
        if budget.fraction >= policy.cheapest(budget.kind)
    }
    assert chosen
    assert not chosen & {setting for setting, _ in said}


@each
def test_what_left_in_the_selection_is_never_proposed(executions, learner):
    executions.fails = frozenset({SPACE.settings[8]})
    bench = make_bench(begun=False)
    for index in range(12):
        bench.trainer.select(index, trial_input(index))
    assert bench.trainer.failures.taken_out == [8]
    assert executions.calls.count(SPACE.settings[8]) == 3
    count = len(bench.trials[-1].draws)
    assert bench.trials[-1].probabilities[1] == pytest.approx((count - 1) / count / 7)  # of those that are left
    begin(bench, learner)
    steps(bench, 10)
    assert executions.calls.count(SPACE.settings[8]) == 3


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


# outcomes


def test_outcome_leaves_out_draws_without_quality_or_timing():
    def execution(name, **values):
        setting = Setting(vision_tokens=name, block_skip=())
        return Execution(sample_id="a", split="train", setting=setting, **values)

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
        probabilities=(0.4, 0.3, 0.2, 0.3),
        budget=BUDGETS[0],
    )
    outcome = outcome_of(trial, observation(0, np.random.default_rng(0)), SPACE, "prefill_ms", 80.0)
    assert outcome.settings.tolist() == [0, 0]
    assert outcome.probabilities.tolist() == [0.3, 0.3]
    assert outcome.quality.tolist() == [1.0, 1.0]
    assert outcome.latency.tolist() == pytest.approx([40.8 / 80] * 2)
    assert outcome.budget == BUDGETS[0]
