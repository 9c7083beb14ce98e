"""Before training: what is executed to know the settings, budgets that bind, and the source of a run."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronostat.control.calibration import (
    BUDGETS_PER_KIND,
    GROUP,
    calibrated_settings,
    chances_of,
    check_source,
    full_ms_of,
    selected_settings,
    training_budgets,
)
from chronostat.errors import MeasurementError
from chronostat.knobs.space import ActionSpace
from chronostat.policy.frontier import Requests
from chronostat.records import Execution, Setting, StageTiming, Trial
from stand_ins.control_fixtures import LATENCIES, SPACE, forecast_of

LARGE = ActionSpace({"vision_tokens": (5, 4, 3, 2, 1), "moe_topk": (4, 3, 2, 1), "block_skip": ((), (1,), (1, 2))})

# what is executed


def alone_in(space):
    return {s for s, row in zip(space.settings, space.level_indices, strict=True) if np.count_nonzero(row) == 1}


def test_full_on_every_sample_and_all_others_in_turn():
    plan = calibrated_settings(SPACE, 48, 0)
    assert [len(each) for each in plan[:1]] == [GROUP]
    assert len(plan) == 8
    assert all(each[0] == SPACE.full for each in plan)
    counts = Counter(setting for each in plan for setting in each[1:])
    # 40 places for eight others; two of a setting on one sample are one
    assert set(counts) == set(SPACE.settings[1:])
    assert all(3 <= count <= 5 for count in counts.values())


def test_of_a_large_space_each_value_alone_comes_first():
    plan = calibrated_settings(LARGE, 30, 0)
    assert len(plan) == 5
    others = [setting for each in plan for setting in each[1:]]
    assert len(set(others)) == 25  # of 59, on each sample other ones
    assert set(others[:9]) == alone_in(LARGE)
    assert plan != calibrated_settings(LARGE, 30, 1)
    assert plan == calibrated_settings(LARGE, 30, 0)


@settings(max_examples=40)
@given(st.integers(12, 300), st.integers(0, 100))
def test_a_plan_takes_about_as_many_as_it_may(executions, seed):
    for space in (SPACE, LARGE, ActionSpace({"moe_topk": (2, 1)})):
        plan = calibrated_settings(space, executions, seed)
        assert len(plan) >= 2
        assert sum(map(len, plan)) <= executions
        assert all(each[0] == space.full and len(set(each)) == len(each) for each in plan)
        asked = {setting for each in plan for setting in each}
        assert len(asked) == min(len(space), 1 + len(plan) * (GROUP - 1))


def test_a_space_of_full_alone():
    assert calibrated_settings(ActionSpace({"moe_topk": (2,)}), 8, 0) == [[Setting(moe_topk=2)]] * 8
    assert selected_settings([SPACE.full], 3, 0) == [SPACE.full]


def test_the_selection_takes_full_and_all_others_alike_often():
    drawn = [selected_settings(SPACE.settings, index, 0) for index in range(80)]
    assert all(each[0] == SPACE.full and len(set(each)) == len(each) for each in drawn)
    counts = Counter(setting for each in drawn for setting in each[1:])
    assert min(counts[setting] for setting in SPACE.settings[1:]) >= 40
    assert max(counts.values()) <= 50  # 400 places for eight
    assert drawn[:20] == [selected_settings(SPACE.settings, index, 0) for index in range(20)]
    assert drawn[:20] != [selected_settings(SPACE.settings, index, 1) for index in range(20)]


def test_the_chances_of_a_group_are_those_of_one_of_its_draws():
    group = selected_settings(SPACE.settings, 0, 0)
    chances = chances_of(group, len(SPACE))
    # full is one of six; each of the eight others is one of the five others as often as any
    assert chances == pytest.approx([1 / 6, *[5 / 6 / 8] * 5])
    assert 1 / 6 + 8 * chances[1] == pytest.approx(1)
    assert chances_of([SPACE.full], 1) == [1.0]


# what follows from it


def calibration(*measured_ms):
    executions = [
        Execution(
            sample_id="a",
            split="train",
            setting=SPACE.full,
            timing=None
            if ms is None
            else StageTiming(source="measured", total_ms=ms + 9, new_tokens=1, decode_steps=0, prefill_ms=ms),
            invalid="RuntimeError: out of memory" if ms is None else None,
        )
        for ms in measured_ms
    ]
    return [Trial(phase="calibrate", index=0, sample_id="a", executions=tuple(executions))]


def test_full_is_the_median_of_what_was_measured():
    assert full_ms_of(calibration(80.0, None, 160.0, 81.0), SPACE.full, "prefill_ms") == 81.0
    assert full_ms_of([*calibration(80.0), *calibration(90.0)], SPACE.full, "total_ms") == 94.0


def test_full_that_was_never_measured_is_said():
    with pytest.raises(MeasurementError, match="full could not be measured: RuntimeError: out of memory"):
        full_ms_of(calibration(None, None), SPACE.full, "prefill_ms")


def test_budgets_lie_where_the_settings_do():
    fractions = np.linspace(0.1, 1.0, 101)
    requests = Requests(prompts=np.ones((3, 1)), tokens=np.full((3, 101, 2), 10.0))
    budgets = training_budgets(forecast_of(fractions), requests)
    means = [budget.fraction for budget in budgets if budget.kind == "mean"]
    # quantiles .05 and .95 of .1 to 1
    assert (means[0], means[-1]) == (pytest.approx(0.145), pytest.approx(0.955))
    assert np.diff(means) == pytest.approx(np.full(BUDGETS_PER_KIND - 1, (0.955 - 0.145) / (BUDGETS_PER_KIND - 1)))
    assert [budget.fraction for budget in budgets if budget.kind == "deadline"] == means


def test_budgets_are_of_means_over_requests_of_every_size():
    slopes = np.array([[1.0] * 9, *[[0.0] * 9] * 4])
    tokens = np.stack([np.full((9, 2), 10.0), np.full((9, 2), 32.0)])  # three times as large
    requests = Requests(prompts=np.ones((2, 1)), tokens=tokens)
    budgets = training_budgets(forecast_of(LATENCIES, slopes=slopes), requests)
    assert budgets[0].fraction == pytest.approx(2 * np.quantile(LATENCIES, 0.05))


# the source of a run


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
