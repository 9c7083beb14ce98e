"""The calibration: fractions by hand, budgets that bind, and the source of a run."""

import pytest

import chronostat.execution.trials
from chronostat.control.calibration import Calibration, calibrate, check_source
from chronostat.errors import MeasurementError
from chronostat.measure.clock import FakeClock
from chronostat.records import Execution, Setting, StageTiming
from stand_ins.control_fixtures import LATENCIES, SPACE, FakeExecutions, make_runner, trial_input


@pytest.fixture
def executions(monkeypatch):
    fake = FakeExecutions()
    monkeypatch.setattr(chronostat.execution.trials, "execute", fake)
    return fake


def run(samples=5, seconds=60.0, trials=None):
    runner = make_runner(FakeClock(), (trials if trials is not None else []).append)
    return calibrate(runner, SPACE, [trial_input(i) for i in range(samples)], "prefill_ms", seconds)


def test_every_setting_is_measured_as_a_fraction_of_full(executions):
    calibration = run()
    assert calibration.full_ms == pytest.approx(80)
    assert calibration.fractions == pytest.approx(LATENCIES)
    assert calibration.samples == 5


def test_full_is_the_median_over_samples_and_a_setting_the_mean(executions, monkeypatch):
    factors = iter([1.0, 1.0, 2.0])

    def slower(*arguments, **keywords):
        if len(executions.calls) % len(SPACE) == 0:
            executions.full_ms = 80.0 * next(factors)
        return executions(*arguments, **keywords)

    monkeypatch.setattr(chronostat.execution.trials, "execute", slower)
    calibration = run(samples=3)
    assert calibration.full_ms == pytest.approx(80)  # the median of 80, 80, 160
    assert calibration.fractions == pytest.approx([fraction * 4 / 3 for fraction in LATENCIES])  # the mean of 1, 1, 2


def test_the_time_box_ends_between_samples(executions):
    # nine settings: 80 ms * the sum of their fractions, and 5 ms each
    sample_s = (80 * sum(LATENCIES) + 9 * 5) / 1e3
    assert run(seconds=1.5 * sample_s).samples == 2


def test_a_setting_that_always_fails_is_executed_three_times_and_has_no_number(executions):
    failing = SPACE.settings[4]
    executions.fails = frozenset({failing})
    trials = []
    calibration = run(trials=trials)
    assert executions.calls.count(failing) == 3
    assert [len(trial.executions) for trial in trials] == [9, 9, 9, 8, 8]
    assert calibration.streaks == (0, 0, 0, 0, 3, 0, 0, 0, 0)
    assert calibration.reasons == {4: "RuntimeError: out of memory"}
    others = [
        (known, found) for i, (known, found) in enumerate(zip(LATENCIES, calibration.fractions, strict=True)) if i != 4
    ]
    assert all(found == pytest.approx(known) for known, found in others)
    assert calibration.fractions[4] != calibration.fractions[4]  # there is none
    # the quantiles of the budgets are those of the others
    known = Calibration(full_ms=80.0, fractions=tuple(found for _, found in others), samples=5)
    assert calibration.budgets() == known.budgets()


def test_a_failure_is_left_out_of_the_mean(executions, monkeypatch):
    failing = SPACE.settings[4]

    def sometimes(*arguments, **keywords):
        executions.fails = frozenset({failing}) if len(executions.calls) < len(SPACE) else frozenset()
        return executions(*arguments, **keywords)

    monkeypatch.setattr(chronostat.execution.trials, "execute", sometimes)
    assert run().fractions == pytest.approx(LATENCIES)


def test_full_that_always_fails_stops_the_run(executions):
    executions.fails = frozenset({SPACE.full})
    with pytest.raises(MeasurementError, match=r"full failed 3 times in a row.*RuntimeError: out of memory"):
        run()
    assert executions.calls.count(SPACE.full) == 3


def test_full_that_failed_on_the_only_samples_is_said(executions):
    executions.fails = frozenset({SPACE.full})
    with pytest.raises(MeasurementError, match="full could not be measured: RuntimeError: out of memory"):
        run(samples=2)


def test_budgets_lie_where_the_settings_do():
    fractions = tuple(0.1 + 0.9 * i / 100 for i in range(101))
    budgets = Calibration(full_ms=80.0, fractions=fractions, samples=1).budgets()
    means = [budget.fraction for budget in budgets if budget.kind == "mean"]
    # quantiles .05 and .95 of .1 to 1
    assert (means[0], means[-1]) == (pytest.approx(0.145), pytest.approx(0.955))
    assert means == sorted(means)
    assert [budget.fraction for budget in budgets if budget.kind == "deadline"] == means


def probe(source="measured", invalid=None):
    timing = StageTiming(
        source=source, total_ms=9.0, new_tokens=1, decode_steps=0, unseen=None if source == "measured" else "no blocks"
    )
    return Execution(
        sample_id="a", split="train", setting=Setting(), timing=None if invalid else timing, invalid=invalid
    )


def test_a_run_whose_stages_are_not_seen_stops_or_uses_the_total():
    assert check_source(probe(), "stop") == "measured"
    assert check_source(probe("total_only"), "total") == "total_only"
    with pytest.raises(MeasurementError, match=r"cannot be seen \(no blocks\) and measure.on_unmeasured = 'stop'"):
        check_source(probe("total_only"), "stop")
    with pytest.raises(MeasurementError, match="the start-up check failed: boom"):
        check_source(probe(invalid="boom"), "total")
