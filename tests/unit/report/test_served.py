"""The page of a run that served."""

from dataclasses import replace

import pytest

from chronostat.records import Setting
from chronostat.records.messages import Turn
from chronostat.report import write_report
from chronostat.report.run.gather import look_at
from chronostat.report.run.served import served_figures, served_tables
from chronostat.runs.store import RunStore
from chronostat.serving.log import RequestLog
from chronostat.serving.served import Served
from chronostat.wire.asks import Ask, AskedBudget
from chronostat.wire.errors import Refused
from stand_ins.serving import answered_with


def served(budget, second, *, charged_ms=50.5, meetable=True, setting="full"):
    ask = Ask(id="a", received_ns=0, turns=(Turn(role="user", parts=("Hi",)),), budget=budget)
    answered = answered_with("Yes", ask)
    answered = replace(
        answered,
        charged_ms=charged_ms,
        kept=None if budget is None or budget.kind == "mean" else charged_ms <= budget.ms,
        meetable=meetable,
        execution=replace(answered.execution, setting=Setting.parse(setting)),
    )
    return Served(id="a", received=f"2026-12-01T10:00:{second:02d}.000+00:00", ask=ask, outcome=answered)


@pytest.fixture
def run(tmp_path):
    """Three answers under a deadline, of which one is late and could not be kept; two under a mean; one without."""
    deadline, mean = AskedBudget(ms=60.0), AskedBudget(ms=50.0, kind="mean")
    with RunStore.create(tmp_path / "run", {"metric": "request_ms", "source": "measured"}) as store:
        log = RequestLog(store.folder)
        log.append(served(deadline, 0, setting="vision_tokens=16"))
        log.append(served(deadline, 1, setting="vision_tokens=16"))
        log.append(served(deadline, 2, charged_ms=90.0, meetable=False, setting="vision_tokens=16"))
        log.append(served(mean, 30, charged_ms=40.0))
        log.append(served(mean, 31, charged_ms=65.0))
        log.append(served(None, 59))
        log.append(Served(id="b", received="", ask=None, outcome=Refused(400, "no", code="invalid_json")))
        log.append(Served(id="c", received="", ask=None, outcome=None, gone=True))
        log.close()
        yield look_at(store)


def cells(table):
    return [list(row.cells) for row in table.rows]


def test_budgets_say_what_was_kept_by_their_own_rule(run):
    assert cells(served_tables(run)["served"]) == [
        # Wilson of 2 of 3; (50.5 + 50.5 + 90) / 3, and 50.5 + 0.9 * 39.5
        ["deadline 60.0 ms", "3", "66.7 % [20.8, 93.9]", "1", "63.7 ms", "86.0 ms", "2.0 ms"],
        ["mean 50.0 ms", "2", "no, 105.0 % of it", "0", "52.5 ms", "63.8 ms", "2.0 ms"],
        ["none", "1", "", "0", "50.5 ms", "50.5 ms", "2.0 ms"],
    ]


def test_settings_and_what_was_not_answered_are_counted(run):
    tables = served_tables(run)
    assert [row[:4] for row in cells(tables["served-settings"])] == [
        ["full", "3", "50.0 %", "46.0 ms"],  # 4 + 1 + 41
        ["vision_tokens=16", "3", "50.0 %", "46.0 ms"],
    ]
    assert cells(tables["not-answered"]) == [["400", "invalid_json", "1"], ["499", "the client went away", "1"]]


def test_stages_are_drawn_over_time(run):
    (figure,) = served_figures(run)
    # 48 spans of 59 * 1.001 / 48 = 1.23 s: seconds 0 and 1, 2, 30, 31, 59
    assert figure.summary.startswith("Stacked bars of the mean milliseconds of each stage of 6 answers in 5 spans")


def test_the_page_of_a_server_asks_for_no_verdict(run):
    page = write_report(run.store).read_text()
    assert "Budgets kept while serving" in page
    assert "Nothing was validated yet" not in page
    assert "Nothing was trained" not in page


def test_a_run_that_served_nothing_has_none_of_it(tmp_path):
    with RunStore.create(tmp_path / "run", {"metric": "request_ms"}) as store:
        run = look_at(store)
        assert (served_tables(run), served_figures(run)) == ({}, [])
