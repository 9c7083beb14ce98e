"""A controller of the bundled model on a simulated machine that has changed since it was trained."""

from dataclasses import replace
from math import erf, log, sqrt

import numpy as np
import pytest

from chronostat.control.recalibration import LEAST, recalibrated
from chronostat.errors import MeasurementError
from chronostat.measure.clock import FakeClock
from chronostat.records import Budget
from stand_ins.machines import Machine, requests_of, trained_on

SEEDS = 4
MOVED = {"vision": 2.0, "decode": 0.5}
MEANS, DEADLINES = (0.4, 0.55, 0.7), (0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def controller(bundled):
    return trained_on(bundled, Machine())


@pytest.fixture(scope="module")
def judged(bundled):
    return requests_of(bundled, "test", 100)


@pytest.fixture
def here(bundled):
    """12 requests that came by."""
    return requests_of(bundled, "validation", 12)


@pytest.fixture(scope="module")
def renewed(controller, bundled):
    """By 60 executions on the machine that has changed, with noise and requests of their own each time."""
    found = []
    for seed in range(SEEDS):
        machine = Machine(seed=seed + 1, **MOVED)
        measured = machine.executions(requests_of(bundled, "validation", 12, first=12 * seed), controller.space)
        assert len(machine.executed) == 60
        found.append(recalibrated(controller, bundled.model, measured, FakeClock()))
    return found


def true_fractions(machine, controller, judged):
    means = np.array(
        [np.mean([machine.total_ms(s, r.sample.prompt) for r in judged]) for s in controller.space.settings]
    )
    return means / means[0]


def played(controller, machine, judged, budget_ms, kind):
    """True mean latency, and share of requests that are late, of what it chooses."""
    coin, budget = np.random.default_rng(0), Budget(kind=kind, fraction=budget_ms / controller.full_ms)
    charged_ms, late = [], []
    own_ms = controller.policy.forecast.controller * controller.full_ms
    for request in judged:
        position = controller.policy.decide(controller.observer(request), budget, float(coin.random()))
        setting, prompt = controller.space.settings[position], request.sample.prompt
        charged_ms.append(machine.total_ms(setting, prompt) + own_ms)
        room = log((budget_ms - own_ms) / sum(machine.typical_ms(setting, prompt))) / machine.noise
        late.append((1 - erf(room / sqrt(2))) / 2)
    return float(np.mean(charged_ms)), float(np.mean(late))


def full_of(machine, controller, judged):
    return float(np.median([sum(machine.typical_ms(controller.space.full, r.sample.prompt)) for r in judged]))


def test_vision_twice_as_slow_and_decode_half_is_found(controller, renewed, judged):
    machine = Machine(**MOVED)
    truth = true_fractions(machine, controller, judged)
    stale = np.array([each.before for each in renewed[0].settings]) / truth - 1
    assert np.abs(stale).max() > 0.2  # the worst setting, if only full were measured anew
    full_ms = full_of(machine, controller, judged)
    errors = np.array([[each.now.point for each in found.settings] for found in renewed]) / truth - 1
    assert sqrt(np.mean(errors**2)) < 0.065
    assert np.abs(errors).max() < 0.16
    for found in renewed:
        assert found.full_ms.point == pytest.approx(full_ms, rel=0.08)
        assert sum(each.moved for each in found.settings) >= 4
        within = [each.now.low <= t <= each.now.high for each, t in zip(found.settings, truth, strict=True)]
        assert np.mean(within) > 0.8


def test_budgets_in_milliseconds_are_kept_again(controller, renewed, judged):
    machine = Machine(**MOVED)
    full_ms = full_of(machine, controller, judged)
    over, late, stale_over, stale_late = [], [], [], []
    for fraction in MEANS:
        limit_ms = fraction * full_ms
        over += [played(each.controller, machine, judged, limit_ms, "mean")[0] / limit_ms for each in renewed]
        stale_over.append(played(controller, machine, judged, limit_ms, "mean")[0] / limit_ms)
    for fraction in DEADLINES:
        limit_ms = fraction * full_ms
        late += [played(each.controller, machine, judged, limit_ms, "deadline")[1] for each in renewed]
        stale_late.append(played(controller, machine, judged, limit_ms, "deadline")[1])
    assert min(stale_over) > 1.15
    assert min(stale_late) > 0.3
    assert max(over) < 1.08
    assert np.mean(over) < 1.01
    assert max(late) < 0.12
    assert np.mean(late) < 0.05


def test_where_nothing_moved_nothing_changes_beyond_noise(controller, bundled, judged, here):
    truth = true_fractions(Machine(), controller, judged)
    errors = []
    for seed in range(SEEDS):
        measured = Machine(seed=seed + 1).executions(here, controller.space)
        found = recalibrated(controller, bundled.model, measured, FakeClock())
        assert [each.setting for each in found.settings if each.moved] == []
        assert found.full_ms.low < controller.full_ms < found.full_ms.high
        errors.append(np.array([each.now.point for each in found.settings]) / truth - 1)
    assert sqrt(np.mean(np.square(errors))) < 0.04
    assert np.abs(errors).max() < 0.16


def test_quality_is_untouched_and_so_is_the_controller_that_is_renewed(controller, bundled, renewed):
    before = {name: value.copy() for name, value in controller.policy.state().items()}
    recalibrated(
        controller, bundled.model, Machine(**MOVED).executions(requests_of(bundled, "train", 12), controller.space)
    )
    assert all(np.array_equal(value, before[name]) for name, value in controller.policy.state().items())
    new = renewed[0].controller
    assert new.policy.scorers == controller.policy.scorers
    assert new.policy.draws is controller.policy.draws
    assert new.full_ms == renewed[0].full_ms.point != controller.full_ms
    assert new.metadata.levels == controller.metadata.levels


def test_it_is_of_the_model_and_the_conditions_that_are_now(controller, bundled, here):
    conditions = replace(controller.metadata.conditions, machine="another", dtype="bfloat16")
    of_rule_1 = {"model_fingerprint": "2e29f80f8ab1", "conditions": conditions}
    carried = replace(controller, metadata=controller.metadata.model_copy(update=of_rule_1))
    found = recalibrated(carried, bundled.model, Machine().executions(here, controller.space), FakeClock())
    assert found.controller.metadata.model_fingerprint == bundled.fingerprint
    assert found.controller.metadata.conditions == controller.metadata.conditions


def test_what_choosing_costs_is_measured_anew(controller, bundled, here, monkeypatch):
    clock, look = FakeClock(), controller.observer

    def slow(request):
        clock.advance_ms(3.0)
        return look(request)

    slower = replace(controller, observer=slow)
    found = recalibrated(slower, bundled.model, Machine().executions(here, controller.space), clock)
    assert found.controller.policy.forecast.controller * found.controller.full_ms == pytest.approx(3.0)


def test_without_full_there_is_nothing_to_count_in(controller, bundled, here):
    measured = Machine().executions(here, controller.space)
    without = [(request, each[1:]) for request, each in measured]
    with pytest.raises(MeasurementError, match="full could not be measured: no execution of it was handed over"):
        recalibrated(controller, bundled.model, without)
    broken = [(r, [replace(each[0], timing=None, invalid="out of memory"), *each[1:]]) for r, each in measured]
    with pytest.raises(MeasurementError, match="full could not be measured: out of memory; the controller is left"):
        recalibrated(controller, bundled.model, broken)


def test_too_few_executions_are_refused(controller, bundled, here):
    few = Machine().executions(here[:3], controller.space, each=3)
    message = f"9 executions could be measured, which do not tell a change from noise: at least {LEAST} are needed"
    with pytest.raises(MeasurementError, match=message):
        recalibrated(controller, bundled.model, few)


def test_what_something_else_disturbed_does_not_count(controller, bundled, here):
    measured = Machine().executions(here, controller.space)
    request, (*others, last) = measured[0]
    slow = replace(last, timing=replace(last.timing, total_ms=50 * last.timing.total_ms), disturbed="another process")
    disturbed = recalibrated(controller, bundled.model, [(request, [*others, slow]), *measured[1:]], FakeClock())
    left_out = recalibrated(controller, bundled.model, [(request, others), *measured[1:]], FakeClock())
    assert (disturbed.executions, disturbed.disturbed, disturbed.failed) == (59, 1, 0)
    assert disturbed.full_ms == left_out.full_ms


def test_a_setting_that_keeps_failing_is_never_chosen_until_it_works_again(controller, bundled, here, judged):
    out = controller.space.settings[-1]
    measured = Machine().executions(here, controller.space)
    failed = [
        (request, [*each, *([replace(each[0], setting=out, timing=None, invalid="out of memory")] if i >= 9 else [])])
        for i, (request, each) in enumerate(measured)
    ]
    found = recalibrated(controller, bundled.model, failed, FakeClock())
    assert dict(found.taken_out) == {out: "out of memory"}
    assert found.failed == 3
    assert found.controller.metadata.taken_out == (str(out),)
    cheapest = Budget(kind="mean", fraction=found.controller.policy.cheapest("mean"))
    chosen = {found.controller.policy.decide(controller.observer(each), cheapest, 0.5) for each in judged[:20]}
    assert len(controller.space) - 1 not in chosen
    again = Machine().executions(here, controller.space)
    assert any(execution.setting == out for _, each in again for execution in each)
    assert recalibrated(found.controller, bundled.model, again, FakeClock()).controller.metadata.taken_out == ()
