"""The thread that owns the model: what it does where something fails that is no request's fault."""

from contextlib import contextmanager
from threading import Event

import pytest
import torch

import chronostat.serving.service
from chronostat.errors import MeasurementError, StoreError
from chronostat.measure.clock import clock_for
from chronostat.records.messages import Turn
from chronostat.runs.store.parts import Part, live_parts
from chronostat.serving.line import Job, Line
from chronostat.serving.log import FOLDER, RequestLog, read_requests
from chronostat.serving.renewing import Nothing
from chronostat.serving.service import Service
from chronostat.wire.asks import Ask
from chronostat.wire.errors import Refused
from stand_ins.serving import WAIT_S, Scripted, until


class Full(RequestLog):
    """A log on a disk that is full."""

    def append(self, served):
        raise StoreError("cannot write: no space left on device")


@pytest.fixture
def service(tmp_path):
    made = []

    def make(log=RequestLog, **options):
        counted = []
        clock = clock_for(torch.device("cpu"))
        options = {"keeper": Nothing(), **options}
        made.append(Service(Scripted(), Line(4), log(tmp_path), count=counted.append, clock=clock, **options))
        return made[-1], counted

    yield make
    for each in made:
        each.end()
        each.wait()


def job(done, name="a"):
    ask = Ask(id=name, received_ns=0, turns=(Turn(role="user", parts=("Hi",)),))
    return Job(ask=ask, received="2026-12-01T10:00:00.000+00:00", told=lambda _: None, done=done)


def ready(service):
    until(lambda: service.state != "warming")
    return service


def answered(service):
    done, outcomes = Event(), []
    ready(service).join(job(lambda outcome: (outcomes.append(outcome), done.set())))
    assert done.wait(WAIT_S)
    return outcomes[0]


def test_what_fails_before_the_first_request_ends_the_server(service):
    @contextmanager
    def failing():
        raise MeasurementError("full could not be measured")
        yield

    failed = Event()
    made, _ = service(prepared=failing)
    made.start(failed.set)
    assert failed.wait(WAIT_S)
    made.wait()
    assert made.state == "failed"
    assert str(made.error) == "full could not be measured"
    with pytest.raises(Refused, match="the server has failed") as caught:
        made.join(job(lambda _: None))
    assert (caught.value.status, caught.value.code) == (503, "failed")


def test_what_is_done_before_the_first_request_is_told_when_the_server_ends(service):
    begun, seen = Event(), []

    class Keeper(Nothing):
        def begin(self, ended):
            seen.append(ended())
            begun.set()
            until(ended)
            seen.append(True)

    made, _ = service(keeper=Keeper())
    made.start()
    assert begun.wait(WAIT_S)
    made.end()
    made.wait()
    assert seen == [False, True]
    assert made.error is None


def test_an_answer_is_in_the_log_and_counted_when_it_is_told(service, tmp_path):
    made, counted = service()
    seen = []
    done = Event()
    asked = job(lambda _: (seen.append((read_requests(tmp_path).column("id").to_pylist(), len(counted))), done.set()))
    made.start()
    ready(made).join(asked)
    assert done.wait(WAIT_S)
    assert seen == [(["a"], 1)]


def test_a_request_that_cannot_be_logged_gets_no_answer_and_ends_the_server(service):
    failed = Event()
    made, _ = service(Full)
    made.start(failed.set)
    outcome = answered(made)
    assert isinstance(outcome, Refused)
    assert "no space left on device" in outcome.message
    assert failed.wait(WAIT_S)
    assert isinstance(made.error, StoreError)


def test_on_a_full_disk_who_waits_is_told_as_well_and_the_server_ends(service):
    failed, outcomes = Event(), []
    made, _ = service(Full)
    made.answerer.goes_on.clear()
    made.start(failed.set)
    ready(made).join(job(outcomes.append))
    assert made.answerer.begun.wait(WAIT_S)
    for name in "bc":
        made.join(job(outcomes.append, name))
    made.answerer.goes_on.set()
    assert failed.wait(WAIT_S)
    assert ["no space left on device" in outcome.message for outcome in outcomes] == [True] * 3
    assert isinstance(made.error, StoreError)
    with pytest.raises(Refused, match="the server has failed"):
        made.join(job(outcomes.append))


def test_nothing_counts_as_running_while_the_keeper_measures_or_the_log_is_merged(service):
    running = []

    class Keeper(Nothing):
        def between(self, *, waiting):
            running.append(made.line.running)
            return super().between(waiting=waiting)

    made, _ = service(keeper=Keeper())
    made.start()
    answered(made)
    until(lambda: running)
    assert not any(running)


def test_between_requests_the_keeper_is_asked_and_told_whether_somebody_waits(service):
    asked = []

    class Keeper(Nothing):
        def between(self, *, waiting):
            asked.append(waiting)
            return 0.01

    made, _ = service(keeper=Keeper())
    made.answerer.goes_on.clear()
    made.start()
    ready(made)
    done = Event()
    first, second = job(lambda _: None), job(lambda _: done.set(), "b")
    made.join(first)
    assert made.answerer.begun.wait(WAIT_S)
    made.join(second)
    before = len(asked)
    made.answerer.goes_on.set()
    assert done.wait(WAIT_S)
    assert asked[before] is True
    until(lambda: not asked[-1])


def test_many_requests_are_merged_into_the_table_while_it_serves(service, tmp_path, monkeypatch):
    monkeypatch.setattr(chronostat.serving.service, "_MERGED_AT", 2)
    made, _ = service()
    made.start()
    for _ in range(3):
        answered(made)
    until(lambda: live_parts(tmp_path / FOLDER))
    assert live_parts(tmp_path / FOLDER) == [Part(0, 1)]
    assert read_requests(tmp_path).num_rows == 3
