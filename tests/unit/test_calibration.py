"""The calibration: fractions by hand, budgets that bind, and the source of a run."""

import pytest
from control_fixtures import LATENCIES, SPACE, FakeExecutions, make_runner, subject

import chronostat.trials
from chronostat.control.calibration import Anchors, Calibration, calibrate, check_source
from chronostat.errors import MeasurementError
from chronostat.measure.clock import FakeClock
from chronostat.records import Execution, Setting, StageTiming, Trial


@pytest.fixture
def executions(monkeypatch):
    fake = FakeExecutions()
    monkeypatch.setattr(chronostat.trials, "execute", fake)
    return fake


def run(samples=5, seconds=60.0, trials=None):
    runner = make_runner(FakeClock(), (trials if trials is not None else []).append)
    return calibrate(runner, SPACE, [subject(i) for i in range(samples)], "prefill_ms", seconds)


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

    monkeypatch.setattr(chronostat.trials, "execute", slower)
    calibration = run(samples=3)
    assert calibration.full_ms == pytest.approx(80)  # the median of 80, 80, 160
    assert calibration.fractions == pytest.approx([fraction * 4 / 3 for fraction in LATENCIES])  # the mean of 1, 1, 2


def test_the_time_box_ends_between_samples(executions):
    # nine settings: 80 ms * the sum of their fractions, and 5 ms each
    sample_s = (80 * sum(LATENCIES) + 9 * 5) / 1e3
    assert run(seconds=1.5 * sample_s).samples == 2


def test_a_setting_that_always_fails_is_named(executions):
    failing = SPACE.settings[4]
    executions.fails = frozenset({failing})
    with pytest.raises(
        MeasurementError, match=f"setting {failing} failed on all 5 samples: RuntimeError: out of memory"
    ):
        run()


def test_a_failure_is_left_out_of_the_mean(executions, monkeypatch):
    failing = SPACE.settings[4]

    def sometimes(*arguments, **keywords):
        executions.fails = frozenset({failing}) if len(executions.calls) < len(SPACE) else frozenset()
        return executions(*arguments, **keywords)

    monkeypatch.setattr(chronostat.trials, "execute", sometimes)
    assert run().fractions == pytest.approx(LATENCIES)


def test_full_that_always_fails_is_said(executions):
    executions.fails = frozenset({SPACE.full})
    with pytest.raises(MeasurementError, match="full could not be measured: RuntimeError: out of memory"):
        run()


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


def test_anchors_are_the_median_of_the_last_15():
    anchors = Anchors([1000.0] * 10)
    for ms in range(1, 16):
        anchors.add(anchor_trial(float(ms)), "prefill_ms")
    assert anchors.full_ms == 8.0
    anchors.add(anchor_trial(None), "prefill_ms")  # failed: no number
    anchors.add(anchor_trial(500.0, anchor=None), "prefill_ms")  # this trial had no anchor
    assert anchors.full_ms == 8.0


def anchor_trial(prefill_ms, anchor=0):
    timing = StageTiming(source="measured", total_ms=9.0, new_tokens=1, decode_steps=0, prefill_ms=prefill_ms)
    execution = Execution(
        sample_id="a",
        split="train",
        setting=Setting(),
        timing=None if prefill_ms is None else timing,
        invalid="boom" if prefill_ms is None else None,
    )
    return Trial(phase="train", index=0, sample_id="a", executions=(execution,), anchor=anchor)
