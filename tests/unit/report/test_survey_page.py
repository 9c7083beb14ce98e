"""What ``chronostat measure`` shows: rows, notes, the waterfall and the page."""

import dataclasses
import re

from chronostat.measure.generate import Waterfall
from chronostat.report.survey import (
    condition_rows,
    judged,
    notes,
    stage_rows,
    summary_rows,
    survey_page,
    title,
    verdict_rows,
)
from chronostat.report.survey.waterfall import lanes_of
from stand_ins.survey_fixtures import a_survey, column, comparison, shot, timing

WATERFALL = Waterfall(
    spans_ms={
        "image encoding": ((1.0, 10.0),),
        "vision": ((2.0, 8.0),),
        "projector": ((6.0, 7.0),),
        "prefill forward": ((11.0, 30.0),),
        "decoder blocks": ((13.0, 25.0),),
    },
    tokens_ms=(31.0, 36.0, 42.0),
)


def drawn():
    return shot(timing(29.0, new_tokens=3, ttft_ms=31.0, decode_ms=11.0), waterfall=WATERFALL)


def test_the_lanes_are_the_spans_of_one_execution_after_its_preprocessing():
    lanes = {lane.name: (list(lane.bars_ms), lane.sum_ms) for lane in lanes_of(drawn())}
    assert lanes == {  # generate() is entered 2 ms after the request began
        "preprocessing": ([(0, 2)], 2),
        "vision": ([(4, 8), (9, 10)], 5),  # without the projector inside
        "projector": ([(8, 9)], 1),
        "decoder blocks": ([(15, 27)], 12),
        "rest of prefill": ([(3, 4), (10, 12), (13, 15), (27, 32)], 10),
        "first token": ([(32, 33)], 1),
        "decode steps": ([(33, 38), (38, 44)], 11),
        "generate()": ([(2, 52)], 50),
    }


def test_where_only_the_total_was_seen_only_that_is_drawn():
    lanes = [lane.name for lane in lanes_of(shot(timing(source="total_only"), waterfall=WATERFALL))]
    assert lanes == ["preprocessing", "generate()"]


def test_rows_say_what_is_absent_and_what_needs_more():
    found = a_survey(column(*(shot(timing(float(ms)), peak_mib=3.6) for ms in range(1, 11))))
    stages, summary = dict(stage_rows(found)), dict(summary_rows(found))
    assert stages["prefill_ms"] == ("5.5 [2.0, 9.0]",)
    assert stages["decode_ms"] == ("-",)  # one token has no decode: not 0
    assert summary["request_ms p50"] == ("52.0",)
    assert summary["request_ms p99"] == ("needs 100",)
    assert summary["peak process memory"] == ("4 MiB",)
    assert summary["answer"] == ("[red]",)
    assert "median in ms of 10 repeats" in title(found)
    assert "median in ms of 1 repeat [" in title(a_survey(column(shot(timing()))))
    assert judged(found) is None


def test_requests_that_were_answered_with_one_token_are_said():
    shots = [shot(timing(decode_ms=5.0, new_tokens=2), request=0), shot(timing(), request=1)]
    found = a_survey(column(*shots), requests=2)
    assert dict(stage_rows(found))["decode_ms"] == ("5.0",)
    assert list(notes(found)) == ["full: decode_ms is not of 1 of 2 requests: an answer had one token"]
    assert list(notes(a_survey(column(*shots[1:])))) == []


def test_several_requests_show_ranges_and_accuracy():
    shots = [shot(timing(), request=n, prompt_tokens=90 + n, quality=float(n == 1)) for n in range(4)]
    found = a_survey(column(*shots), requests=6)
    summary = dict(summary_rows(found))
    assert (summary["tokens in"], summary["answers right"]) == (("90 to 93",), ("25.0 %",))
    assert "answer" not in summary
    assert "4 executions of 4 of 6 requests" in title(found)


def test_verdicts_stand_in_the_order_of_the_stages_and_nothing_is_hidden():
    comparisons = {
        "total_ms": {1: comparison("total_ms", float("nan"), verdict="invalid", flags=("unequal",))},
        "prefill_ms": {1: comparison("prefill_ms")},
        "other_ms": {1: comparison("other_ms", pairs=0, verdict="invalid")},
    }
    found = a_survey(
        column(shot(timing())), column(shot(timing()), name="small"), comparisons=comparisons, ended="all given"
    )
    assert verdict_rows(found) == [("prefill_ms", ("0.500 [0.450, 0.550] faster",)), ("total_ms", ("invalid",))]
    assert list(notes(found)) == ["small: total_ms: unequal"]
    few = {name: {1: comparison(name, flags=("too few",))} for name in ("prefill_ms", "total_ms")}
    assert list(notes(dataclasses.replace(found, comparisons=few))) == ["small: all latencies: too few"]
    assert judged(found) == "judged by prefill_ms: all given"


def test_a_metric_without_a_pair_is_invalid_in_sight():
    comparisons = {"prefill_ms": {1: comparison("prefill_ms", float("nan"), verdict="invalid", pairs=0)}}
    found = a_survey(column(shot(timing())), column(shot(timing()), name="b"), comparisons=comparisons)
    assert verdict_rows(found) == [("prefill_ms", ("invalid",))]
    assert judged(dataclasses.replace(found, ended="all given")) == "judged by prefill_ms: no verdict can be given"


def test_notes_say_what_was_left_out_and_what_was_disturbed():
    found = a_survey(
        column(shot(timing(), disturbed="stolen"), left_out=2 * (shot(timing(source="total_only")),)),
        column(shot(timing(source="total_only")), name="b"),
    )
    assert list(notes(found)) == [
        "full: left out 2 of 3: not seen: vision",
        "full: 1 of 1 were disturbed, for example: stolen; too few were not, so these count as well; chronostat doctor "
        "says what this machine can do",
        "b: only the whole call was measured (not seen: vision)",
    ]


def test_conditions_that_differ_are_shown_side_by_side():
    first = column(shot(timing()))
    second = column(shot(timing()), name="b", conditions=dataclasses.replace(first.conditions, dtype="bfloat16"))
    rows = dict(condition_rows(a_survey(first, second)))
    assert rows["dtype"] == ("float32", "bfloat16")
    assert rows["device"] == ("cpu",)


def test_the_page_needs_nothing_else_and_escapes_what_it_shows():
    found = a_survey(column(drawn(), name="<b>"), column(drawn(), name="other"), comparisons={})
    page = survey_page(found, "chronostat measure --prompt '<script>'")
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert page.count('data-lane="decode steps"') == 2
    assert "decode steps: 5.00 ms, from 33.00 to 38.00 ms" in page
    assert page.lstrip().startswith("<!doctype html>")
