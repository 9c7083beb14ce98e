"""What is executed to renew a controller, on a simulated machine in the place of ``execute``."""

from collections import Counter

import pytest

import chronostat.execution.trials
from chronostat.control.calibration import alone
from chronostat.data.demo import DemoTask
from chronostat.errors import MeasurementError
from chronostat.measure.clock import FakeClock
from chronostat.progress import Silent
from chronostat.records import StageTiming
from chronostat.runs.workload import Workload
from chronostat.studies.renewing import Passing, renew_with
from stand_ins.machines import Machine, trained_on


@pytest.fixture(scope="module")
def controller(bundled):
    return trained_on(bundled, Machine(), metric="prefill_ms")


@pytest.fixture
def renewing(controller, bundled, monkeypatch):
    """Renew the controller on a machine, with ``most`` executions and some samples."""

    def renewed(machine, most=60, samples=12, of=controller):
        monkeypatch.setattr(chronostat.execution.trials, "execute", machine)
        data = Passing(DemoTask().split("validation")[:samples])
        workload = Workload.of(of.metadata.config, bundled, data)
        return renew_with(of, workload, most=most, seed=0, progress=Silent(), clock=FakeClock())

    return renewed


@pytest.mark.parametrize("most", [20, 60])
def test_no_more_is_executed_than_was_allowed(renewing, most):
    machine = Machine()
    found = renewing(machine, most)
    assert most - 1 <= len(machine.executed) <= most  # a single execution that is left compares nothing
    assert found.executions <= most - 2  # looking whether the stages are seen counts for nothing else


def test_full_and_all_others_in_turn_after_each_value_has_warmed_up(renewing, controller):
    machine = Machine()
    found = renewing(machine)
    space, values = controller.space, alone(controller.space)
    warming = 2 + len(values) - 1  # full twice, then each value once
    assert machine.executed[:warming] == [space.full, *values]
    measured = Counter(machine.executed[warming:])
    groups = -(-(60 - warming) // 6)
    assert measured.pop(space.full) == groups
    assert sum(measured.values()) == 60 - warming - groups
    assert all(measured[value] for value in values[1:])
    assert len(measured) == len(space) - 1  # 35 others, each once or twice
    assert {each.setting: each.executions for each in found.settings if each.executions} == {
        space.full: groups,
        **measured,
    }


def test_few_samples_are_gone_through_again(renewing):
    assert renewing(Machine(), samples=2).executions > 40


def test_what_the_machine_takes_now_is_found(renewing, controller):
    found = renewing(Machine(vision=2.0))
    # vision 8.8 + 272 * .1 = 36 ms and 8 blocks * 312 tokens * .026 ms = 64.9 ms; then 36 ms more
    assert found.full_before_ms == pytest.approx(100.9, rel=0.05)
    assert found.full_ms.point == pytest.approx(136.9, rel=0.08)
    assert found.controller.metadata.config == controller.metadata.config


def test_a_setting_that_fails_is_tried_again_and_then_no_more(renewing, controller):
    out = controller.space.settings[-1]
    machine = Machine(fails=frozenset({out}))
    found = renewing(machine)
    assert machine.executed.count(out) == 3
    assert dict(found.taken_out) == {out: "RuntimeError: out of memory"}
    assert found.controller.metadata.taken_out == (str(out),)


def test_full_that_fails_renews_nothing(renewing, controller):
    with pytest.raises(MeasurementError, match="the start-up check failed: RuntimeError: out of memory"):
        renewing(Machine(fails=frozenset({controller.space.full})))


class Unseen(Machine):
    """Its stages cannot be seen."""

    def __call__(self, *given, **options):
        execution = super().__call__(*given, **options)
        timing = StageTiming(
            source="total_only",
            total_ms=execution.timing.total_ms,
            new_tokens=3,
            decode_steps=2,
            unseen="no vision tower was found",
        )
        return type(execution)(**{**vars(execution), "timing": timing})


def test_what_the_controller_counts_in_must_be_seen(renewing, bundled):
    message = r"the controller counts in prefill_ms, which cannot be seen here \(no vision tower was found\); name the"
    with pytest.raises(MeasurementError, match=message):
        renewing(Unseen())
    by_total = trained_on(bundled, Machine(), metric="total_ms")
    assert renewing(Unseen(), of=by_total).executions > 40
