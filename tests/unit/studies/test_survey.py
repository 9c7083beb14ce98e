"""Requests under arms: order, warm-up, what counts, and what is not compared."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest

from chronostat.errors import ConfigError, KnobError, MeasurementError, UnlikeConditions
from chronostat.execution.execute import execute, request_for
from chronostat.records import Setting
from chronostat.report.survey import notes
from chronostat.studies.survey import STAGES, Arm, Plan, repeated, survey
from chronostat.studies.survey import arms as arms_module
from chronostat.studies.survey import protocol as protocol_module
from chronostat.studies.survey.protocol import _repeat
from chronostat.studies.survey.result import column_of, refuse_unequal
from stand_ins.survey_fixtures import a_survey, column, comparison, shot, timing

FULL, SMALL, FAST = Setting(), Setting(vision_tokens=16), Setting(moe_topk=1)


@pytest.fixture
def request_(bundled, demo_sample):
    return request_for(demo_sample, bundled.processor, None)


@pytest.fixture
def arms(bundled, request_):
    return [Arm(name=str(s), vlm=bundled, setting=s, requests=[request_]) for s in (FULL, SMALL, FAST)]


@pytest.fixture
def order(monkeypatch):
    """The settings in the order they were executed."""
    seen = []

    def watched(model, request, *, setting, **options):
        seen.append(setting)
        return execute(model, request, setting=setting, **options)

    monkeypatch.setattr(arms_module, "execute", watched)
    return seen


def test_arms_are_interleaved_and_what_an_arm_sees_first_is_a_warm_up(arms, order):
    told = []
    shots = repeated(arms, Plan(repeats=3, max_new_tokens=1), advance=lambda share, _: told.append(share))
    assert len(order) == 3 * (1 + 3)  # one warm-up each
    assert told == pytest.approx([n / 9 for n in range(1, 10)])
    rounds = [tuple(each.arm for each in shots[i : i + 3]) for i in range(0, 9, 3)]
    assert all(set(block) == {0, 1, 2} for block in rounds)
    assert len(set(rounds)) > 1  # not always in the same order
    assert {each.execution.image_tokens for each in shots if each.arm == 1} == {16}


def test_every_shape_of_a_request_is_warmed_up(bundled, demo_sample, order):
    short = dataclasses.replace(demo_sample, id="b", prompt=demo_sample.prompt + " please")
    requests = [request_for(sample, bundled.processor, None) for sample in (demo_sample, short, demo_sample)]
    shots = repeated(
        [Arm(name="full", vlm=bundled, setting=FULL, requests=requests)], Plan(repeats=1, max_new_tokens=1)
    )
    assert len({each.shape for each in shots}) == 2
    assert len(order) == 3 + 2
    assert sorted(each.request for each in shots) == [0, 1, 2]


def test_one_arm_has_no_verdict(arms):
    found = survey(arms[:1], Plan(repeats=2, max_new_tokens=1))
    (only,) = found.columns
    assert (only.name, only.source, found.comparisons, found.ended) == ("full", "measured", {}, None)
    assert len(only.shots) + len(only.left_out) == 2
    assert only.shots[0].execution.timing.new_tokens == 1
    assert only.typical.waterfall.spans_ms["decoder blocks"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_what_was_measured_until_it_was_stopped_is_kept(arms, order, number):
    found = survey(arms[:number], Plan(repeats=30, max_new_tokens=1), stopped=lambda: len(order) >= 12)
    assert found.interrupted
    assert all(column.shots for column in found.columns)
    assert len(order) < 12 + 2 * 8  # a round of the judge has a few repeats of each arm
    assert found.ended == (None if number == 1 else "it was interrupted")
    assert next(notes(found)) == "interrupted: this is what was measured until then"


def test_several_arms_are_judged_against_the_first(arms):
    found = survey(arms[:2], Plan(repeats=6, max_new_tokens=2, exact_tokens=True))
    verdict = found.comparisons["prefill_ms"][1]
    # on a busy machine six repeats may decide nothing, or all be disturbed
    assert verdict.verdict in {"faster", "undecided", "invalid"}
    assert found.ended
    assert [each.name for each in found.columns] == ["full", "vision_tokens=16"]
    assert {shot.timing.new_tokens for each in found.columns for shot in each.shots} == {2}


def test_what_warms_an_arm_up_is_in_no_number(arms, monkeypatch):
    calls = Counter()

    def cold_at_first(arms, arm, request, plan, drawn):
        calls[arm] += 1
        cold = calls[arm] <= 2  # the first look at its stages, and the warm-up of the judge
        made = shot(timing(900.0 if cold else 30.0 + arm), request=request)
        return dataclasses.replace(made, arm=arm)

    monkeypatch.setattr(protocol_module, "shoot", cold_at_first)
    found = survey(arms[:2], Plan(repeats=8, max_new_tokens=1))
    for arm, column_ in enumerate(found.columns):
        assert {each.timing.prefill_ms for each in column_.shots} == {30.0 + arm}
        assert len(column_.shots) <= calls[arm] - 2
    assert found.comparisons["prefill_ms"][1].ratio.point == pytest.approx(31 / 30)


def test_several_requests_are_judged_by_sample(bundled, demo_sample):
    requests = [request_for(demo_sample, bundled.processor, None) for _ in range(3)]
    arms = [Arm(name=str(s), vlm=bundled, setting=s, requests=requests) for s in (FULL, SMALL)]
    found = survey(arms, Plan(repeats=1, max_new_tokens=1))
    assert {shot.request for shot in found.columns[0].shots} <= {0, 1, 2}
    assert found.comparisons["prefill_ms"][1].pairs <= 3
    assert "samples were used" in found.ended or "verdict" in found.ended or "limit" in found.ended


def test_an_illegal_setting_is_refused_before_anything_runs(arms, order):
    with pytest.raises(KnobError, match="moe_topk = 9"):
        survey(
            [*arms, dataclasses.replace(arms[0], name="bad", setting=Setting(moe_topk=9))],
            Plan(repeats=1, max_new_tokens=1),
        )
    assert order == []


def test_what_a_model_raises_is_said_with_arm_and_request(arms, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\n")

    monkeypatch.setattr(arms[0].vlm.model.lm_head, "forward", broken)
    sample = arms[0].requests[0].sample.id
    message = rf"full: {sample} ended with RuntimeError \(mat1 and mat2 .* multiplied\); see that the model answers"
    with pytest.raises(MeasurementError, match=message) as said:
        survey(arms[:1], Plan(repeats=1, max_new_tokens=1))
    assert isinstance(said.value.__cause__, RuntimeError)


def test_arms_of_one_name_are_refused(arms):
    with pytest.raises(ConfigError, match="each only once"):
        survey([arms[0], arms[0]], Plan(repeats=1, max_new_tokens=1))


@pytest.mark.parametrize(("field", "value", "refused"), [("attention", "eager", True), ("dtype", "bfloat16", False)])
def test_arms_under_unlike_conditions_are_refused(arms, order, monkeypatch, field, value, refused):
    read, seen = arms_module.read_conditions, []

    def unlike(model, *, sample):
        seen.append(model)
        return dataclasses.replace(read(model, sample=sample), **({field: value} if len(seen) > 1 else {}))

    monkeypatch.setattr(arms_module, "read_conditions", unlike)
    if not refused:
        assert [c.dtype for c in arms_module.like_conditions(arms[:2])] == ["float32", "bfloat16"]
        return
    with pytest.raises(UnlikeConditions, match=r"attention: eager != sdpa; make them alike, for attention with --att"):
        survey(arms[:2], Plan(repeats=1, max_new_tokens=1))
    assert order == []


def test_a_stage_is_the_median_of_its_repeats():
    ten = column(*(shot(timing(float(ms))) for ms in np.random.default_rng(0).permutation(10) + 1))
    prefill = ten.stage("prefill_ms")
    assert (prefill.point, prefill.low, prefill.high) == (5.5, 2, 9)  # the second and the ninth of ten
    request = ten.stage("request_ms")
    assert (request.point, request.low, request.high) == (52, 52, 52)  # 2 ms of preprocessing and 50 of generate()
    assert ten.stage("preprocess_ms").point == 2


def test_with_several_requests_the_interval_is_over_their_medians():
    shots = [
        shot(timing(float(10 * request + repeat)), request=request) for request in range(7) for repeat in (1, 2, 9)
    ]
    prefill = column(*shots).stage("prefill_ms")
    assert (prefill.point, prefill.low, prefill.high) == (32, 2, 62)  # medians 2, 12 ... 62; of 7 the outermost


def test_a_stage_that_was_not_seen_each_time_is_absent():
    some = column(shot(timing(1.0, decode_ms=4.0)), shot(timing(2.0)))
    assert some.stage("decode_ms") is None
    assert some.stage("prefill_ms").point == 1.5
    assert some.requests_without("decode_ms") == 1


def test_a_request_without_a_stage_takes_it_from_no_other_request():
    shots = [shot(timing(1.0, decode_ms=float(ms)), request=ms) for ms in (4, 6)] + [shot(timing(1.0), request=7)]
    some = column(*shots)
    assert some.stage("decode_ms").point == 5
    assert (some.requests_without("decode_ms"), some.requests_without("prefill_ms")) == (1, 0)
    assert column(shot(timing(1.0))).requests_without("decode_ms") == 0  # none has it: nothing is missing


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (None, None, None)),
        (2, (1.5, None, None)),
        (20, (10.5, 19.5, None)),
        (99, (50, 95, None)),
        (101, (51, 96, 100)),
    ],
)
def test_a_percentile_needs_enough_executions(count, expected):
    times = column(*(shot(timing(total_ms=float(n)), preprocess_ms=None) for n in range(1, count + 1)))
    assert tuple(times.percentile_ms(p) for p in (50, 95, 99)) == expected


def test_the_typical_execution_has_the_middle_total():
    assert column(*(shot(timing(total_ms=ms)) for ms in (9.0, 1.0, 5.0))).typical.timing.total_ms == 5
    assert column(*(shot(timing(total_ms=ms)) for ms in (9.0, 1.0, 5.0, 7.0))).typical.timing.total_ms == 5


def kept(arms, *shots):
    return column_of(arms[0], arms_module.like_conditions(arms[:1])[0], shots)


def test_what_could_not_be_measured_is_left_out_and_counted(arms):
    found = kept(arms, shot(timing(1.0)), shot(timing(source="total_only")), shot(timing(2.0)))
    assert (found.source, len(found.shots), found.reasons) == ("measured", 2, {"not seen: vision": 1})


def test_if_only_totals_were_seen_they_count(arms):
    found = kept(arms, *(shot(timing(source="total_only")) for _ in range(3)))
    assert (found.source, len(found.shots), found.reasons) == ("total_only", 3, {})


@pytest.mark.parametrize(("calm", "used", "disturbed"), [(3, 3, 0), (2, 2, 0), (1, 4, 3)])
def test_disturbed_executions_are_left_out_unless_they_are_most(arms, calm, used, disturbed):
    shots = [shot(timing(), disturbed=None if number < calm else f"stolen {number}.5 ms") for number in range(4)]
    found = kept(arms, *shots)
    assert (len(found.shots), found.disturbed) == (used, disturbed)
    assert found.reasons == ({"stolen": 4 - calm} if used < 4 else {})
    executions = found.to_json()["executions"]  # the numbers of those that were left out are there too
    assert sorted(each["disturbed"] or "" for each in executions) == sorted(s.execution.disturbed or "" for s in shots)
    assert [each["counts"] for each in executions] == used * [True] + (4 - used) * [False]


def test_an_arm_that_was_never_executed_is_refused(arms):
    with pytest.raises(MeasurementError, match="full was never executed beyond its warm-up"):
        kept(arms)


def test_repeats_of_one_request_become_its_median():
    quiet = _repeat([shot(timing(ms, other_ms=-0.05)) for ms in (1.0, 9.0, 3.0)], "prefill_ms")
    assert (quiet.latency_ms["prefill_ms"], quiet.cost_ms, quiet.left_out) == (3, 156, None)
    assert "other_ms" not in quiet.latency_ms  # a latency that is not above 0 has no ratio
    some = _repeat([shot(timing(1.0)), shot(timing(9.0), disturbed="stolen")], "prefill_ms")
    assert (some.latency_ms["prefill_ms"], some.left_out) == (1, None)
    assert _repeat([shot(timing(9.0), disturbed="stolen")], "prefill_ms").left_out == "stolen"
    assert _repeat([shot(timing(source="total_only"))], "prefill_ms").left_out == "not seen: vision"


@pytest.mark.parametrize("metric", ["total_ms", "request_ms", "decode_ms", "other_ms"])
def test_answers_of_unequal_length_have_no_verdict_on_what_grows_with_them(metric):
    two, three = column(shot(timing(new_tokens=2))), column(shot(timing(new_tokens=3)), name="small")
    refused = refuse_unequal({metric: {1: comparison(metric)}}, [two, three])[metric][1]
    assert refused.verdict == "invalid"
    assert math.isnan(refused.ratio.point)
    assert refused.flags == (
        "answers of unequal length (3 tokens against 2): compare decode_ms_per_token, or make all answers equally long "
        "with --exact-tokens",
    )


def test_where_only_totals_are_known_no_other_latency_is_advised():
    columns = [column(shot(timing(source="total_only", new_tokens=n)), name=str(n)) for n in (2, 3)]
    (flag,) = refuse_unequal({"total_ms": {1: comparison("total_ms")}}, columns)["total_ms"][1].flags
    assert flag.endswith("(3 tokens against 2): make all answers equally long with --exact-tokens")


@pytest.mark.parametrize("metric", ["prefill_ms", "ttft_ms", "decode_ms_per_token", "vision_ms"])
def test_answers_of_unequal_length_are_compared_by_what_does_not_grow(metric):
    two, three = column(shot(timing(new_tokens=2))), column(shot(timing(new_tokens=3)), name="small")
    assert refuse_unequal({metric: {1: comparison(metric)}}, [two, three])[metric][1].verdict == "faster"


def test_answers_are_compared_request_by_request():
    ones = [shot(timing(new_tokens=n), request=r) for r, n in enumerate((2, 5))]
    same = [shot(timing(new_tokens=n), request=r) for r, n in enumerate((2, 5))]
    swapped = [shot(timing(new_tokens=n), request=r) for r, n in enumerate((5, 2))]
    given = {"total_ms": {1: comparison("total_ms")}}
    assert refuse_unequal(given, [column(*ones), column(*same)])["total_ms"][1].verdict == "faster"
    assert refuse_unequal(given, [column(*ones), column(*swapped)])["total_ms"][1].verdict == "invalid"


def test_everything_is_plain_data_with_units():
    unbounded = dataclasses.replace(comparison("prefill_ms"), verdict="undecided")
    unbounded = dataclasses.replace(unbounded, ratio=dataclasses.replace(unbounded.ratio, high=math.inf))
    found = a_survey(
        column(shot(timing())), column(shot(timing()), name="b"), comparisons={"prefill_ms": {1: unbounded}}
    )
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    arm = data["arms"][0]
    assert set(arm["stages"]) == set(STAGES)
    assert arm["stages"]["prefill_ms"] == {"point": 30, "low": None, "high": None}  # one repeat has no interval
    assert arm["executions"][0]["prefill_ms"] == 30
    assert arm["conditions"]["device"] == "cpu"
    (verdict,) = data["comparisons"]
    assert (verdict["arm"], verdict["against"], verdict["verdict"]) == ("b", "full", "undecided")
    assert verdict["ratio"] == {"point": 0.5, "low": 0.45, "high": None}
