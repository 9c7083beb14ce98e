"""The waiting line: order, length, leaving and closing."""

import pytest

from chronostat.records.messages import Turn
from chronostat.serving.line import MOST_RETRY_S, Job, Line
from chronostat.wire.asks import Ask
from chronostat.wire.errors import Refused


def job(name):
    ask = Ask(id=name, received_ns=0, turns=(Turn(role="user", parts=("Hi",)),))
    return Job(ask=ask, received="", told=lambda _: None, done=lambda _: None)


def test_first_in_is_first_out():
    line, jobs = Line(3), [job("a"), job("b"), job("c")]
    for each in jobs:
        line.join(each)
    assert [line.take(0) for _ in range(4)] == [*jobs, None]


def test_one_too_many_is_told_to_come_again_after_what_those_before_it_take():
    line = Line(2)
    line.took(21.0)  # 1 + 0.2 * (21 - 1) = 5 s each
    line.join(job("a"))
    line.join(job("b"))
    with pytest.raises(Refused, match="2 requests wait already, which is all that may") as caught:
        line.join(job("c"))
    assert (caught.value.status, caught.value.retry_after_s) == (429, 15)  # two that wait, and the one that runs
    line.took(1e6)
    with pytest.raises(Refused) as caught:
        line.join(job("c"))
    assert caught.value.retry_after_s == MOST_RETRY_S


def test_who_leaves_gives_up_the_place_or_is_known_to_be_gone():
    line, first, second = Line(2), job("a"), job("b")
    line.join(first)
    line.join(second)
    assert line.take(0) is first
    assert line.running
    assert not line.leave(first)
    assert line.leave(second)
    assert first.gone
    assert second.gone
    assert line.take(0) is None


def test_nothing_runs_any_more_once_it_is_answered():
    line = Line(1)
    line.join(job("a"))
    line.take(0)
    assert line.running
    line.took(0.1)
    assert not line.running


def test_a_closed_line_gives_back_who_waited_and_takes_nobody():
    line, waiting = Line(2), job("a")
    line.join(waiting)
    assert line.close() == [waiting]
    with pytest.raises(Refused, match="the server ends") as caught:
        line.join(job("b"))
    assert caught.value.status == 503
    assert line.take(60.0) is None
