"""The stages of one request, repeated and interleaved."""

import dataclasses

import numpy as np
import pytest

import chronostat.survey
from chronostat.errors import KnobError, MeasurementError
from chronostat.execution import execute, request_for
from chronostat.records import Setting, StageTiming
from chronostat.survey import STAGES, survey

FULL, SMALL, FAST = Setting(), Setting(vision_tokens=16), Setting(moe_topk=1)


@pytest.fixture
def request_(bundled, demo_sample):
    return request_for(demo_sample, bundled.processor, None)


@pytest.fixture
def order(monkeypatch):
    """The settings in the order they were executed."""
    seen = []

    def watched(model, request, *, setting, **options):
        seen.append(setting)
        return execute(model, request, setting=setting, **options)

    monkeypatch.setattr(chronostat.survey, "execute", watched)
    return seen


def test_settings_are_interleaved_and_the_first_round_is_a_warm_up(bundled, request_, order):
    told = []
    measured = survey(
        bundled,
        request_,
        [FULL, SMALL, FAST],
        repeats=4,
        max_new_tokens=1,
        advance=lambda: told.append(len(order)),
    )
    assert len(order) == 3 * (1 + 4)
    assert told == list(range(1, 16))
    rounds = [order[i : i + 3] for i in range(0, 15, 3)]
    assert all(set(block) == {FULL, SMALL, FAST} for block in rounds)
    assert len({tuple(block) for block in rounds}) > 1  # not always in the same order
    assert {setting: len(repeats) for setting, repeats in measured.executions.items()} == {FULL: 4, SMALL: 4, FAST: 4}
    assert {e.image_tokens for e in measured.executions[SMALL]} == {16}
    assert (measured.source, measured.model) == ("measured", "bundled demo_vlm")
    assert measured.conditions.threads == 1


def test_an_illegal_setting_is_refused_before_anything_runs(bundled, request_, order):
    with pytest.raises(KnobError, match="moe_topk = 9"):
        survey(bundled, request_, [FULL, Setting(moe_topk=9)], repeats=1, max_new_tokens=1)
    assert order == []


@pytest.fixture
def measured(bundled, request_):
    return survey(bundled, request_, [FULL], repeats=1, max_new_tokens=1)


def with_timings(measured, *timings):
    (execution,) = measured.executions[FULL]
    repeats = [dataclasses.replace(execution, timing=timing, preprocess_ms=2.0) for timing in timings]
    return dataclasses.replace(measured, executions={FULL: repeats})


def timing(prefill_ms, source="measured", decode_ms=None):
    return StageTiming(
        source=source, total_ms=50.0, new_tokens=1, decode_steps=0, prefill_ms=prefill_ms, decode_ms=decode_ms
    )


def test_a_stage_is_the_median_of_its_repeats(measured):
    ten = with_timings(measured, *(timing(float(ms)) for ms in np.random.default_rng(0).permutation(10) + 1))
    prefill = ten.stage(FULL, "prefill_ms")
    assert (prefill.point, prefill.low, prefill.high) == (5.5, 2, 9)  # the second and the ninth of ten
    request = ten.stage(FULL, "request_ms")
    assert (request.point, request.low, request.high) == (52, 52, 52)  # 2 ms of preprocessing and 50 of generate()
    assert ten.stage(FULL, "preprocess_ms").point == 2


def test_a_stage_that_was_not_seen_each_time_is_absent(measured):
    some = with_timings(measured, timing(1.0, decode_ms=4.0), timing(2.0))
    assert some.stage(FULL, "decode_ms") is None
    assert some.stage(FULL, "prefill_ms").point == 1.5


def test_repeats_of_two_sources_are_not_compared(measured):
    mixed = with_timings(measured, timing(1.0), timing(None, source="total_only"))
    with pytest.raises(MeasurementError, match=r"the repeats do not have one source \(measured, total_only\)"):
        _ = mixed.source


def test_every_repeat_is_plain_data_with_units(measured):
    data = measured.to_json()
    (setting,) = data["settings"]
    (execution,) = setting["executions"]
    assert setting["setting"] == "full"
    assert set(STAGES) <= set(execution)
    assert execution["prefill_ms"] == measured.executions[FULL][0].timing.prefill_ms
    assert data["conditions"]["device"] == "cpu"
