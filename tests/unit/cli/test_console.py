"""What a person sees: bars while a run goes on, tables at its end."""

import dataclasses
import io
import math

import pytest
from rich.console import Console

from chronostat.cli.console import PHASE_NAMES, Bars, survey_tables, verdict_table
from chronostat.records import Estimate
from stand_ins.sample_run import validation
from stand_ins.survey_fixtures import a_survey, column, comparison, shot, timing


def console(*, terminal=False, width=140):
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, markup=False, soft_wrap=True
    )


def shown(printed):
    return printed.file.getvalue()


def render(table, width=140):
    there = console(width=width)
    there.print(table)
    return shown(there)


def test_without_a_terminal_each_phase_is_two_lines():
    there = console()
    bars = Bars(there)
    for phase in PHASE_NAMES:
        bars.begin(phase, "about 96 executions")
        bars.advance(0.5, "12 samples")
        bars.end("96 executions in 25 s")
    lines = shown(there).splitlines()
    assert len(lines) == 2 * len(PHASE_NAMES)
    assert lines[2:4] == ["calibrate: about 96 executions", "calibrate: 12 samples, 96 executions in 25 s"]


def test_a_phase_that_did_nothing_has_no_note_of_the_one_before():
    there = console()
    bars = Bars(there)
    bars.begin("calibrate", "about 96 executions")
    bars.advance(0.5, "12 samples")
    bars.end("done")
    bars.begin("train", "about 96 executions")
    bars.end("0 executions in 0 s")
    assert shown(there).splitlines()[-1] == "train: 0 executions in 0 s"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_phase_that_is_unsaid_leaves_no_line_but_its_warnings(terminal):
    there = console(terminal=terminal)
    bars = Bars(there, unsaid={"warmup"})
    bars.begin("warmup", "about 36 executions")
    bars.advance(0.5, "12 settings")
    bars.warn("the model samples by itself")
    bars.end("38 executions in 5 s")
    bars.begin("train", "about 240 executions")
    bars.end("240 executions in 150 s")
    written = shown(there)
    assert "38 executions" not in written
    assert "warning: the model samples by itself\n" in written
    assert ("check and warm up" in written) == terminal  # a bar, while it goes on
    assert written.endswith("train: 240 executions in 150 s\n")


def test_in_a_terminal_a_bar_becomes_a_line():
    there = console(terminal=True)
    bars = Bars(there)
    bars.begin("train", "about 240 executions")
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
    assert mean_row[-4:] == ["15.0", "75", "%", "yes"]  # 15 of 20 ms
    assert deadline_row[-4:] == ["30.0", "150", "%", "no"]


def test_the_verdict_fits_80_characters_and_nothing_is_cut():
    wide = Estimate(point=1.0, low=1.0, high=1.0)
    scores = [
        dataclasses.replace(
            score, accuracy=wide, gain=Estimate(point=-0.167, low=-0.5, high=0.167), budget_ms=9876.5, p95_ms=12345.6
        )
        for score in validation().scores
    ]
    text = render(verdict_table(dataclasses.replace(validation(), metric="llm_prefill_ms", scores=scores)), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    row = next(line for line in text.splitlines() if "12345.6" in line)
    assert row.split()[:4] == ["controller", "100.0", "[100.0,", "100.0]"]
    assert row.split()[-5:] == ["+16.7]", "12345.6", "125", "%", "yes"]  # 12345.6 of 9876.5 ms


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_a_bound_that_could_not_be_computed_says_so(bound):
    score = validation().scores[0]
    unbounded = dataclasses.replace(score, accuracy=Estimate(point=0.5, low=bound, high=bound))
    text = render(verdict_table(dataclasses.replace(validation(), scores=(unbounded,))))
    assert "50.0 [invalid, invalid]" in text


def rows_of(table):
    return {words[0]: words[1:] for line in render(table).splitlines() if len(words := line.split()) > 1}


def test_a_survey_of_one_arm_is_one_table():
    found = a_survey(column(*(shot(timing(float(ms), vision_ms=10.0)) for ms in range(1, 11))))
    (table,) = survey_tables(found, 140)
    rows = rows_of(table)
    assert rows["prefill_ms"] == ["5.5", "[2.0,", "9.0]"]
    assert rows["decode_ms"] == ["-"]
    text = render(table)
    assert "median in ms of 10 repeats" in text
    assert "[red]" in text  # an answer is no markup
    assert "80" in text


def test_a_few_repeats_have_a_median_and_no_interval():
    (table,) = survey_tables(a_survey(column(*(shot(timing(float(ms))) for ms in range(1, 4)))), 140)
    assert rows_of(table)["prefill_ms"] == ["2.0"]


def test_verdicts_are_a_second_table():
    two = column(shot(timing())), column(shot(timing()), name="small")
    _, verdicts = survey_tables(a_survey(*two, comparisons={"prefill_ms": {1: comparison("prefill_ms")}}), 140)
    assert "latency / full" in render(verdicts)
    assert rows_of(verdicts)["prefill_ms"] == ["0.500", "[0.450,", "0.550]", "faster"]


NAMES = ("full", "block_skip=2,3,4,5,6", "block_skip=2,3,4,5,7", "vision_tokens=16 moe_topk=1 block_skip=2,3,4,5,6")


def test_arms_that_do_not_fit_a_line_go_below_and_nothing_is_cut():
    shots = [shot(timing(1234.5 + n, vision_ms=1234.5), answer="a long answer " * 9) for n in range(10)]
    compared = {"prefill_ms": {arm: comparison("prefill_ms", verdict="undecided") for arm in (1, 2, 3)}}
    found = a_survey(*(column(*shots, name=name) for name in NAMES), comparisons=compared)
    tables = survey_tables(found, 80)
    text = "".join(render(table, width=80) for table in tables)
    assert max(len(line) for line in text.splitlines() if "median in ms" not in line) <= 80
    assert "…" not in text
    assert text.count("1239.0 [1235.5, 1242.5]") == len(NAMES)  # each number in one piece
    assert text.count("0.500 [0.450, 0.550]") == 3
    assert text.count("median in ms of 10 repeats") == 1
    assert len(survey_tables(found, 300)) == 2
    for width in range(60, 130):
        lines = [line for table in survey_tables(found, width) for line in render(table, width).splitlines()]
        assert max(len(line) for line in lines if "median in ms" not in line) <= width
    for name in NAMES:
        assert all(word in text for word in name.split())
