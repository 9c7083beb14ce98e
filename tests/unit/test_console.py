"""What a person sees: bars while a run goes on, tables at its end."""

import dataclasses
import io
import math

import pytest
from rich.console import Console
from sample_run import CONDITIONS, validation

from chronostat.console import PHASE_NAMES, Bars, survey_table, verdict_table
from chronostat.records import Conditions, Estimate, Execution, Setting, StageTiming
from chronostat.survey import Survey


def console(*, terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=140, color_system=None, markup=False)


def shown(printed):
    return printed.file.getvalue()


def render(table):
    there = console()
    there.print(table)
    return shown(there)


def test_without_a_terminal_each_phase_is_two_lines():
    there = console()
    bars = Bars(there)
    for phase in PHASE_NAMES:
        bars.begin(phase, 25)
        bars.advance(0.5, "12 samples")
        bars.end("96 executions in 25 s")
    lines = shown(there).splitlines()
    assert len(lines) == 2 * len(PHASE_NAMES)
    assert lines[2:4] == ["calibrate: at most 25 s", "calibrate: 12 samples, 96 executions in 25 s"]


def test_a_phase_that_did_nothing_has_no_note_of_the_one_before():
    there = console()
    bars = Bars(there)
    bars.begin("calibrate", 25)
    bars.advance(0.5, "12 samples")
    bars.end("done")
    bars.begin("train", 25)
    bars.end("0 executions in 0 s")
    assert shown(there).splitlines()[-1] == "train: 0 executions in 0 s"


def test_in_a_terminal_a_bar_becomes_a_line():
    there = console(terminal=True)
    bars = Bars(there)
    bars.begin("train", 150)
    bars.advance(0.25, "30 trials")
    bars.advance(1.5, "60 trials")  # a box that was overrun is full, not more
    bars.end("240 executions in 150 s")
    written = shown(there)
    assert "left" in written
    assert written.endswith("train: 60 trials, 240 executions in 150 s\n")


def test_the_verdict_shows_every_policy_under_every_budget():
    verdict = dataclasses.replace(validation(), metric="prefill_ms")
    text = render(verdict_table(verdict))
    assert f"{verdict.samples} paired test samples" in text
    assert "prefill_ms + controller_ms" in text.replace("\n", " ")
    for score in verdict.scores:
        assert str(score.budget) in text
        assert score.policy in text
    assert text.count(" controller ") >= len({score.budget for score in verdict.scores})


def test_the_latency_of_a_verdict_is_that_of_its_kind_of_budget():
    (score, *_) = (score for score in validation().scores if score.budget.kind == "mean")
    one = dataclasses.replace(
        score, budget_ms=20.0, mean_ms=Estimate(point=15.0, low=14.0, high=16.0), p95_ms=30.0, kept=True
    )
    deadline = dataclasses.replace(one, budget=dataclasses.replace(score.budget, kind="deadline"), kept=False)
    rows = render(verdict_table(dataclasses.replace(validation(), scores=(one, deadline)))).splitlines()
    mean_row, deadline_row = (row.split() for row in rows if f" {score.policy} " in row)
    assert mean_row[-5:] == ["15.0", "ms", "75", "%", "yes"]  # 15 of 20 ms
    assert deadline_row[-5:] == ["30.0", "ms", "150", "%", "no"]


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_a_bound_that_could_not_be_computed_says_so(bound):
    score = validation().scores[0]
    unbounded = dataclasses.replace(score, accuracy=Estimate(point=0.5, low=bound, high=bound))
    text = render(verdict_table(dataclasses.replace(validation(), scores=(unbounded,))))
    assert "50.0 [invalid, invalid]" in text


def a_survey(repeats):
    def execution(prefill_ms):
        timing = StageTiming(
            source="measured", total_ms=50.0, new_tokens=1, decode_steps=0, prefill_ms=prefill_ms, vision_ms=10.0
        )
        return Execution(
            sample_id="a",
            split="test",
            setting=Setting(),
            timing=timing,
            answer="[red]",
            preprocess_ms=2.0,
            prompt_tokens=90,
            image_tokens=80,
        )

    return Survey(
        model="a model",
        fingerprint="0123",
        conditions=Conditions(**CONDITIONS),
        executions={Setting(): [execution(float(ms)) for ms in range(1, repeats + 1)]},
    )


def rows_of(survey):
    lines = render(survey_table(survey)).splitlines()
    return {line.split()[1]: line for line in lines if len(line.split()) > 3}


def test_a_survey_shows_stages_and_says_what_is_absent():
    rows = rows_of(a_survey(10))
    assert "5.5 ms [2.0, 9.0]" in rows["prefill_ms"]
    assert "10.0 ms [10.0, 10.0]" in rows["vision_ms"]
    assert rows["decode_ms"].split()[3] == "-"  # one token has no decode: not 0
    assert "52.0 ms" in rows["request_ms"]
    text = render(survey_table(a_survey(10)))
    assert "median of 10 repeats" in text
    assert "[red]" in text  # an answer is no markup
    assert "80" in text


def test_a_few_repeats_have_a_median_and_no_interval():
    assert rows_of(a_survey(3))["prefill_ms"].split() == ["│", "prefill_ms", "│", "2.0", "ms", "│"]
