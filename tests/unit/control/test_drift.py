"""Drift: by hand for one filter, and on a fake time line with drift, a step and spikes."""

import math

import numpy as np
import pytest

from chronostat.control import drift
from chronostat.control.drift import (
    Anchor,
    DriftTracker,
    Pace,
    Reference,
    TimeLine,
    _around,
    _estimate,
    _Filters,
    anchor_of,
    reference_of,
    smoothed,
)
from chronostat.records import Execution, Setting, StageTiming, Trial

REFERENCE = Reference(full_ms=40.0, tokens=300.0)
EVERY_S = 2.0


def trial(started_s, prefill_ms, tokens=300, anchor=0):
    failed = prefill_ms is None
    timing = StageTiming(source="measured", total_ms=9.0, new_tokens=1, decode_steps=0, prefill_ms=prefill_ms)
    execution = Execution(
        sample_id="a",
        split="train",
        setting=Setting(),
        timing=None if failed else timing,
        invalid="out of memory" if failed else None,
        prompt_tokens=tokens,
    )
    return Trial(phase="train", index=0, sample_id="a", executions=(execution,), anchor=anchor, started_s=started_s)


def follow(latencies_ms, tokens=None):
    """What was known before each anchor, and afterwards of all of them."""
    tokens = [300] * len(latencies_ms) if tokens is None else tokens
    tracker, known, anchors = DriftTracker(REFERENCE, "prefill_ms"), [], []
    for i, (ms, count) in enumerate(zip(latencies_ms, tokens, strict=True)):
        known.append(tracker.at(EVERY_S * i))
        tracker.add(trial(EVERY_S * i, float(ms), int(count)))
        anchors.append(Anchor(EVERY_S * i, float(ms), int(count)))
    return known, smoothed(anchors, REFERENCE)


def points(estimates):
    return np.array([estimate.point for estimate in estimates])


def covered(estimates, truth):
    return np.mean([e.low <= value <= e.high for e, value in zip(estimates, truth, strict=True)])


def noisy(truth, deviation, seed=0):
    return 40.0 * truth * np.exp(np.random.default_rng(seed).normal(0, deviation, len(truth)))


def test_one_anchor_by_hand():
    filters = _Filters()
    step = filters.update(10.0, 0.1, 0.0)
    # the first filter: noise .01, deviation of the level .5 before it
    gain = 0.25 / (0.25 + 0.01**2)
    assert step.mean[0, 0] == pytest.approx(0.1 * gain)
    assert step.covariance[0, 0, 0] == pytest.approx(0.25 * 0.01**2 / (0.25 + 0.01**2))
    assert step.mean[0, 1] == 0  # no token more or less than in the calibration: nothing learned of the slope
    # ten seconds later the first filter's level may have moved by .0001 * sqrt(10)
    assert filters.level_variance(20.0)[0] == pytest.approx(step.covariance[0, 0, 0] + 1e-8 * 10)


def test_a_spike_counts_for_little_by_hand():
    filters = _Filters()
    for i in range(50):
        filters.update(2.0 * i, 0.0, 0.0)
    spread = filters.covariance[0, 0, 0] + 1e-8 * 2
    # weight (4 + 1) / (4 + z^2) with z^2 = 1 / (spread + .01^2); gain = spread / (spread + .01^2 / weight)
    weight = 5 / (4 + 1 / (spread + 1e-4))
    step = filters.update(100.0, 1.0, 0.0)
    assert step.mean[0, 0] == pytest.approx(spread / (spread + 1e-4 / weight))
    assert step.mean[0, 0] < 0.001


def test_the_last_anchor_lends_no_weight_yet_by_hand():
    filters = _Filters()
    first = filters.update(0.0, 0.1, 0.0).likelihood
    assert filters.likelihood.tolist() == [0.0] * len(first)
    second = filters.update(2.0, 0.2, 0.0).likelihood
    assert filters.likelihood == pytest.approx(0.95 * first)
    filters.update(4.0, 0.2, 0.0)
    assert filters.likelihood == pytest.approx(0.95 * (0.95 * first + second))


def test_in_the_report_anchors_on_both_sides_lend_weight_by_hand():
    # before the second: .95 * 1, before the third: .95 * (.95 * 1 + 2); after the second: .95 * 4, the first: .95 * 5.8
    around = _around(np.array([[1.0], [2.0], [4.0]]))
    assert around.ravel() == pytest.approx([1 + 0.95 * (2 + 3.8), 0.95 + 2 + 3.8, 0.95 * 2.95 + 4])


def test_filters_that_disagree_widen_the_interval_by_hand():
    # level .5 * 0 + .5 * 1; variance .5 * (.01 + .5 ** 2) + .5 * (.09 + .5 ** 2) = .3
    estimate = _estimate(np.array([0.0, 1.0]), np.array([0.01, 0.09]), np.array([0.5, 0.5]))
    assert estimate.point == pytest.approx(math.exp(0.5))
    assert estimate.high == pytest.approx(math.exp(0.5 + 1.959964 * math.sqrt(0.3)))
    assert estimate.low == pytest.approx(math.exp(0.5 - 1.959964 * math.sqrt(0.3)))


def test_smoothing_is_conditioning_on_all_anchors(monkeypatch):
    monkeypatch.setattr(drift, "_NOISE", np.array([0.1]))
    monkeypatch.setattr(drift, "_PACE", np.array([0.05]))
    at_s, logs, tokens = np.array([0.0, 2.0, 6.0]), np.array([0.02, 0.05, -0.03]), np.array([300, 420, 240])
    found = smoothed(
        [Anchor(s, 40 * math.exp(y), int(n)) for s, y, n in zip(at_s, logs, tokens, strict=True)], REFERENCE
    )
    # levels at the anchors and the slope as one normal vector: start .5 ** 2, then .05 ** 2 a second; slope 1
    prior = np.zeros((4, 4))
    prior[:3, :3] = 0.25 + 0.05**2 * np.minimum.outer(at_s, at_s)
    prior[3, 3] = 1.0
    rows = np.column_stack([np.eye(3), np.log(tokens / 300)])
    gain = prior @ rows.T @ np.linalg.inv(rows @ prior @ rows.T + 0.01 * np.eye(3))
    mean, spread = gain @ logs, np.sqrt(np.diag(prior - gain @ rows @ prior))
    assert np.log(points(found)) == pytest.approx(mean[:3])
    assert [math.log(e.high / e.point) for e in found] == pytest.approx(1.959964 * spread[:3])


def test_a_machine_that_does_not_drift_has_a_drift_of_exactly_1():
    known, whole = follow([40.0] * 30)
    assert points(known).tolist() == points(whole).tolist() == [1.0] * 30
    widths = [estimate.high - estimate.low for estimate in known]
    assert widths[0] > 1 > widths[-1] * 20  # nothing is known before the first anchor


def test_the_interval_grows_with_the_time_since_the_last_anchor():
    tracker = DriftTracker(REFERENCE, "prefill_ms")
    for i in range(20):
        tracker.add(trial(EVERY_S * i, 40.0 if i % 2 else 41.0))
    soon, late = tracker.at(40.0), tracker.at(100.0)
    assert late.high - late.low > soon.high - soon.low
    assert late.point == pytest.approx(soon.point, abs=1e-9)


def test_slow_drift_is_followed_without_jumps():
    truth = 1 + 0.3 * np.arange(150) / 150
    known, whole = follow(noisy(truth, 0.05))
    steps = np.abs(np.diff(np.log(points(known))))[20:]
    assert steps.max() < 0.1  # an anchor of 5 % noise lies 6 % from the one before, on average; the curve 1 %
    assert steps.mean() < 0.02
    assert covered(known[20:], truth[20:]) >= 0.92
    assert np.abs(points(known) / truth - 1)[20:].mean() < 0.03
    assert np.abs(points(whole) / truth - 1)[20:].mean() < 0.02
    assert covered(whole, truth) >= 0.92
    assert np.abs(np.diff(np.log(points(whole)))).max() < 0.05


def test_a_step_is_followed_within_a_few_anchors():
    truth = np.where(np.arange(120) < 60, 1.0, 1.5)
    known, whole = follow(noisy(truth, 0.03))
    assert points(known)[59] == pytest.approx(1, rel=0.04)
    assert points(known)[67] == pytest.approx(1.5, rel=0.08)
    assert points(known)[-1] == pytest.approx(1.5, rel=0.04)
    assert covered(known[20:], truth[20:]) >= 0.9
    assert points(whole)[57] == pytest.approx(1, rel=0.06)
    assert points(whole)[63] == pytest.approx(1.5, rel=0.06)


@pytest.mark.parametrize("spike", [60, 61, 75])
def test_a_spike_does_not_move_the_curve(spike):
    latencies = noisy(np.ones(100), 0.03)
    calm, calm_whole = follow(latencies)
    latencies[spike] *= 4
    known, whole = follow(latencies)
    assert np.abs(points(known) / points(calm) - 1).max() < 0.05
    assert np.abs(points(whole) / points(calm_whole) - 1).max() < 0.05
    assert covered(known[20:], np.ones(80)) >= 0.95


def test_online_only_the_past_is_known():
    latencies = noisy(np.ones(60), 0.05)
    known, _ = follow(latencies)
    latencies[40:] *= 2
    assert points(follow(latencies)[0])[:41].tolist() == points(known)[:41].tolist()


def test_samples_that_differ_in_tokens_are_no_drift():
    tokens = np.random.default_rng(1).integers(150, 600, 100)
    latencies = 40.0 * (tokens / 300) ** 0.8 * np.exp(np.random.default_rng(2).normal(0, 0.02, 100))
    known, whole = follow(latencies, tokens)
    assert np.abs(points(known)[15:] - 1).max() < 0.05
    assert covered(whole, np.ones(100)) >= 0.95
    # the same latencies without the tokens look like a machine with 30 % of noise
    blind, _ = follow(latencies)
    assert np.mean([e.high - e.low for e in blind[15:]]) > 3 * np.mean([e.high - e.low for e in known[15:]])


def test_coverage_over_many_time_lines():
    hits = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = np.exp(np.cumsum(rng.normal(0, 0.01, 80)))
        spikes = np.where(rng.random(80) < 0.03, 3.0, 1.0)
        known, _ = follow(noisy(truth, 0.08, seed) * spikes)
        hits.append(covered(known[15:], truth[15:]))
    assert 0.93 <= np.mean(hits) <= 1


def test_anchors_that_failed_or_are_absent_are_none():
    assert anchor_of(trial(1.0, None), "prefill_ms", 1.0) is None
    assert anchor_of(trial(1.0, 40.0, anchor=None), "prefill_ms", 1.0) is None
    assert anchor_of(trial(1.0, 40.0, tokens=None), "prefill_ms", 7.0) == (7.0, 40.0, None)
    tracker = DriftTracker(REFERENCE, "prefill_ms")
    tracker.add(trial(1.0, None))
    assert tracker.at(2.0).point == 1.0


def test_the_reference_is_the_calibration():
    reference = reference_of([trial(0.0, 40.0, 200), trial(1.0, 44.0, 400), trial(2.0, None)], "prefill_ms", 42.0)
    assert reference == Reference(full_ms=42.0, tokens=300.0)
    assert reference.log_latency(Anchor(0.0, 84.0, None)) == pytest.approx(math.log(2))
    assert reference.log_tokens(Anchor(0.0, 84.0, 600)) == pytest.approx(math.log(2))
    assert reference.log_tokens(Anchor(0.0, 84.0, None)) == 0


def test_processes_are_laid_end_to_end():
    line = TimeLine()
    # the second process begins anew at .5 s, the third at 1 s
    assert [line.place(s) for s in (1.0, 5.0, 5.0, 0.5, 2.0, 1.0)] == [1.0, 5.0, 5.0, 5.5, 7.0, 8.0]


def test_no_anchors_no_curve():
    assert smoothed([], REFERENCE) == []


# the pace of answers


def test_at_the_calibration_forecasts_are_right():
    estimate = Pace(5.0).at(5.0)
    assert estimate.point == 1.0
    assert estimate.low < 1.0 < estimate.high


def test_a_machine_that_became_slower_is_followed_within_some_answers():
    pace, rng = Pace(0.0), np.random.default_rng(0)
    points = []
    for answer, truth in enumerate([1.0] * 40 + [1.4] * 40, start=1):
        pace.add(answer / 10, truth * float(np.exp(0.1 * rng.standard_normal())))
        points.append(pace.at(answer / 10).point)
    assert points[20:40] == pytest.approx(np.full(20, 1.0), abs=0.08)
    assert points[55:] == pytest.approx(np.full(25, 1.4), abs=0.16)
    assert np.mean(points[55:]) == pytest.approx(1.4, abs=0.06)


def test_an_answer_that_was_interrupted_is_no_other_pace():
    pace, rng = Pace(0.0), np.random.default_rng(1)
    for second in range(1, 31):
        pace.add(float(second), float(np.exp(0.05 * rng.standard_normal())))
    before = pace.at(30.0).point
    pace.add(31.0, 3.0)
    assert pace.at(31.0).point == pytest.approx(before, abs=0.05)
