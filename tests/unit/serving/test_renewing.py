"""A controller kept right between requests, on a simulated machine in the place of ``execute``."""

from dataclasses import replace

import pytest

import chronostat.execution.trials
from chronostat.errors import MeasurementError
from chronostat.execution.trials import TrialRunner
from chronostat.measure.clock import FakeClock
from chronostat.records.messages import Turn
from chronostat.serving.choosing import Controlled
from chronostat.serving.renewing import FIRST, URGENT, Renewing, without_answers
from chronostat.wire.asks import Ask, AskedBudget
from stand_ins.machines import Machine, requests_of
from stand_ins.serving import answered_with

ASK = Ask(id="a", received_ns=0, turns=(Turn(role="user", parts=("Hi",)),), budget=AskedBudget(ms=50.6))
LATE = Ask(id="a", received_ns=0, turns=(Turn(role="user", parts=("Hi",)),), budget=AskedBudget(ms=50.4))


@pytest.fixture
def made(controller, bundled, monkeypatch):
    """Renews the controller on a machine: the renewing, what holds the controller, and what was told."""

    def make(machine):
        monkeypatch.setattr(chronostat.execution.trials, "execute", machine)
        clock, told, stored = FakeClock(), [], []
        controlled = Controlled(controller, clock)
        runner = TrialRunner(
            model=bundled.model,
            processor=bundled.processor,
            quality=None,
            full=controller.space.full,
            max_new_tokens=8,
            clock=clock,
            seed=0,
            keep=stored.append,
            anchor_every_s=float("inf"),
        )
        requests = requests_of(bundled, "validation", 12)
        renewing = Renewing(controlled, runner, requests, clock=clock, every_s=3600.0, told=told.append)
        return renewing, controlled, clock, told, stored

    return make


def break_promises(renewing, request):
    for _ in range(20):
        renewing.noted(request, replace(answered_with("Yes", LATE), meetable=True))


def test_before_the_first_request_it_learns_what_settings_take_here(made, controller):
    machine = Machine(vision=2.0, prefill=2.0, decode=2.0, noise=0.01)
    renewing, controlled, _, told, stored = made(machine)
    renewing.begin(lambda: False)
    assert len(machine.executed) == len(stored) == FIRST
    assert controlled.controller.full_ms == pytest.approx(2 * controller.full_ms, rel=0.05)
    assert told[0].full_ms.point == controlled.controller.full_ms
    assert renewing.calibrated is not None


def test_a_server_that_is_told_to_end_before_its_first_request_measures_no_more(made, controller):
    machine = Machine()
    renewing, controlled, _, told, _ = made(machine)
    renewing.begin(lambda: len(machine.executed) == 5)
    assert len(machine.executed) == 5
    assert controlled.controller is controller
    assert told == []


def test_what_is_stored_of_a_calibration_need_not_say_what_was_answered(made):
    renewing, _, _, _, stored = made(Machine())
    renewing.begin(lambda: False)
    measured = replace(stored[0].executions[0], answer=None, output_ids=())
    told = replace(stored[0], executions=(replace(measured, answer="7", output_ids=(5, 6)),))
    assert without_answers(told) == replace(told, executions=(measured,))


def test_one_execution_at_a_time_while_nobody_waits(made):
    machine = Machine()
    renewing, controlled, clock, told, _ = made(machine)
    before = controlled.controller
    assert renewing.between(waiting=False) == 1.0
    clock.advance_ms(3_600_001)
    for count in range(1, FIRST):
        assert renewing.between(waiting=False) == 0.0
        assert len(machine.executed) == count
    assert renewing.between(waiting=True) == 1.0
    assert len(machine.executed) == FIRST - 1
    assert controlled.controller is before
    renewing.between(waiting=False)
    assert controlled.controller is not before
    assert len(told) == 1
    assert renewing.between(waiting=False) == 1.0


def test_an_old_controller_is_not_renewed_while_requests_come(made, bundled):
    machine = Machine()
    renewing, _, clock, _, _ = made(machine)
    clock.advance_ms(3_600_001)
    renewing.noted(requests_of(bundled, "test", 1)[0], answered_with("Yes", ASK))
    assert renewing.between(waiting=False) == 1.0
    clock.advance_ms(60_001)
    assert renewing.between(waiting=False) == 0.0


def test_what_was_begun_in_a_quiet_minute_waits_for_the_next_one(made, bundled):
    machine = Machine()
    renewing, _, clock, _, _ = made(machine)
    clock.advance_ms(3_600_001)
    assert renewing.between(waiting=False) == 0.0
    renewing.noted(requests_of(bundled, "test", 1)[0], answered_with("Yes", ASK))
    assert renewing.between(waiting=False) == 1.0
    assert len(machine.executed) == 1
    clock.advance_ms(60_001)
    assert renewing.between(waiting=False) == 0.0
    assert len(machine.executed) == 2


@pytest.mark.parametrize(
    ("metric", "tokens", "forced", "counted"),
    [
        ("request_ms", 8, False, 1),
        ("request_ms", 9, False, 0),
        ("request_ms", 8, True, 0),
        ("ttft_ms", 9, False, 1),
        ("ttft_ms", 8, True, 1),
    ],
)
def test_an_answer_of_a_length_that_no_latency_is_known_of_breaks_no_promise(
    made, bundled, metric, tokens, forced, counted
):
    renewing, controlled, *_ = made(Machine())
    late = answered_with("Yes", LATE)
    execution = replace(late.execution, output_ids=(5,) * tokens)
    came = replace(late, meetable=True, metric=metric, execution=execution, forced=forced, forecast_ms=10.0)
    renewing.noted(requests_of(bundled, "test", 1)[0], came)
    assert len(renewing.promises) == counted
    assert (controlled.pace.point > 1) is bool(counted)


def served(renewing, controlled, machine, requests, fraction, full_ms):
    """Shares of deadlines that were kept, of the first third of some requests and of the last."""
    kept = []
    for request in requests:
        budget = AskedBudget(ms=fraction * full_ms)
        choice = controlled.choose(request, budget, 0.0, FakeClock())
        execution = machine(None, request, setting=choice.setting)
        took_ms = execution.latency_ms("total_ms")
        kept.append(took_ms <= budget.ms)
        answered = replace(
            answered_with("7", replace(ASK, budget=budget)),
            execution=execution,
            metric="total_ms",
            kept=kept[-1],
            meetable=choice.meetable,
            forecast_ms=choice.forecast_ms,
        )
        renewing.noted(request, answered)
    third = len(kept) // 3
    return sum(kept[:third]) / third, sum(kept[-third:]) / third


def test_answers_say_that_the_machine_became_slower_before_anything_is_measured_again(made, bundled, controller):
    requests, slower = requests_of(bundled, "test", 90), {"vision": 1.4, "prefill": 1.4, "decode": 1.4}
    renewing, controlled, *_ = made(Machine())
    _, followed = served(renewing, controlled, Machine(**slower), requests, 0.7, controller.full_ms)
    assert controlled.pace.point == pytest.approx(1.4, rel=0.06)
    assert followed >= 0.9
    renewing, controlled, *_ = made(Machine())
    controlled.follow = lambda *_: None
    _, not_followed = served(renewing, controlled, Machine(**slower), requests, 0.7, controller.full_ms)
    assert not_followed < 0.6


def test_what_is_renewed_is_as_fast_as_it_was_measured(made, bundled):
    renewing, controlled, *_ = made(Machine(vision=1.4, prefill=1.4, decode=1.4))
    for _ in range(20):
        controlled.follow(100.0, 140.0)
    break_promises(renewing, requests_of(bundled, "test", 1)[0])
    for _ in range(URGENT):
        renewing.between(waiting=True)
    assert controlled.pace.point == 1.0


def test_broken_promises_are_mended_also_while_requests_wait(made, bundled):
    machine = Machine(vision=3.0)
    renewing, controlled, _, _, _ = made(machine)
    (request,) = requests_of(bundled, "test", 1)
    break_promises(renewing, request)
    assert renewing.promises.broken
    for _ in range(URGENT):
        renewing.between(waiting=True)
    assert len(machine.executed) == URGENT
    assert not renewing.promises.broken
    assert controlled.controller.full_ms > 105  # 36 ms of vision more than 110


def test_what_was_measured_in_haste_is_measured_again_in_the_next_quiet_minute(made, bundled):
    machine = Machine(vision=3.0)
    renewing, _, clock, told, _ = made(machine)
    break_promises(renewing, requests_of(bundled, "test", 1)[0])
    for _ in range(URGENT):
        renewing.between(waiting=True)
    assert renewing.between(waiting=False) == 1.0
    clock.advance_ms(60_001)
    for _ in range(FIRST):
        assert renewing.between(waiting=False) == 0.0
    assert (len(machine.executed), len(told)) == (URGENT + FIRST, 2)
    clock.advance_ms(60_001)
    assert renewing.between(waiting=False) == 1.0


def test_a_machine_on_which_full_fails_leaves_the_controller_as_it_is_and_says_so(made, controller, bundled):
    machine = Machine(fails=frozenset({controller.space.full}))
    renewing, controlled, _, told, _ = made(machine)
    break_promises(renewing, requests_of(bundled, "test", 1)[0])
    for _ in range(URGENT):
        renewing.between(waiting=False)
    assert controlled.controller is controller
    assert isinstance(told[0], MeasurementError)
    assert renewing.between(waiting=False) == 1.0
    with pytest.raises(MeasurementError, match="full could not be measured"):
        renewing.begin(lambda: False)


def test_deadlines_that_nothing_could_keep_break_no_promise(made, bundled):
    renewing, *_ = made(Machine())
    for _ in range(20):
        renewing.noted(requests_of(bundled, "test", 1)[0], answered_with("Yes", LATE))  # meetable is None
    assert len(renewing.promises) == 0


def test_it_is_measured_on_requests_that_came(made, bundled):
    seen = []

    class Noting(Machine):
        def __call__(self, model, request, **options):
            seen.append(request.sample.id)
            return super().__call__(model, request, **options)

    renewing, *_ = made(Noting())
    came = requests_of(bundled, "test", 12)
    for request in came:
        renewing.noted(request, answered_with("Yes", ASK))
    break_promises(renewing, came[-1])
    for _ in range(URGENT):
        renewing.between(waiting=False)
    assert set(seen) == {came[-1].sample.id}
