"""What a budget leaves when a request's turn comes, and what is chosen within it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from chronostat.errors import ConfigError
from chronostat.measure.clock import FakeClock
from chronostat.records import Setting
from chronostat.serving import choosing
from chronostat.serving.choosing import Controlled, Fixed
from chronostat.serving.outside import Outside
from chronostat.wire.asks import AskedBudget
from chronostat.wire.errors import Refused
from stand_ins.machines import Machine, requests_of


@pytest.fixture(autouse=True)
def one_side_of_the_coin(monkeypatch):
    """Equal requests get equal settings."""
    monkeypatch.setattr(choosing, "_COIN", SimpleNamespace(random=lambda: 0.5))


@pytest.fixture(scope="module")
def requests(bundled):
    return requests_of(bundled, "test", 12)


def outside_of(*weights):
    """A forecast that is linear in a constant, megapixels, image and text tokens, without noise."""
    outside, rng = Outside(), np.random.default_rng(0)
    for sizes in np.column_stack([np.ones(30), rng.uniform(0, 2, 30), rng.uniform(0, 300, 30), rng.uniform(1, 99, 30)]):
        outside.add(sizes, float(sizes @ weights))
    return outside


def chosen(controlled, request, ms, *, spent_ms=0.0, **budget):
    return controlled.choose(request, AskedBudget(ms=ms, **budget), spent_ms, FakeClock())


def test_a_metric_that_nobody_waits_for_is_refused_with_the_command_that_trains_another(controller):
    other = replace(controller, metadata=controller.metadata.model_copy(update={"metric": "prefill_ms"}))
    with pytest.raises(ConfigError, match=r"counts in prefill_ms.*takes one of ttft_ms, total_ms") as caught:
        Controlled(other, FakeClock())
    assert str(caught.value).endswith("chronostat demo --run-dir runs/serving --set measure.latency_metric=request_ms")


def test_without_a_budget_the_model_answers_as_it_was_built(controller, requests):
    choice = Controlled(controller, FakeClock()).choose(requests[0], None, 50.0, FakeClock())
    assert (choice.setting, choice.meetable) == (controller.space.full, None)


def test_what_is_spent_is_taken_off_a_deadline(controller, requests):
    controlled = Controlled(controller, FakeClock())
    settings = [chosen(controlled, each, 0.6 * controller.full_ms).setting for each in requests]
    assert [
        chosen(controlled, each, 0.6 * controller.full_ms + 30, spent_ms=30).setting for each in requests
    ] == settings
    assert [
        chosen(controlled, each, 0.6 * controller.full_ms + 60, spent_ms=30).setting for each in requests
    ] != settings


def test_what_is_spent_is_never_taken_off_a_mean(controller, requests):
    choice = chosen(
        Controlled(controller, FakeClock()), requests[0], 0.6 * controller.full_ms, spent_ms=1e6, kind="mean"
    )
    assert choice.meetable


@pytest.mark.parametrize("kind", ["deadline", "mean"])
def test_preprocessing_leaves_the_less_the_more_tokens_it_makes(controller, requests, kind):
    costly = Controlled(controller, FakeClock(), outside_of(1.0, 0.0, 0.2, 0.0))
    free = Controlled(controller, FakeClock())
    limit_ms = 0.7 * controller.full_ms
    for request in requests:
        with_it, without = (chosen(each, request, limit_ms, kind=kind).setting for each in (costly, free))
        assert with_it["vision_tokens"] <= without["vision_tokens"]
        forecast = controller.policy.forecast
        seen = controller.observer(request)
        took = forecast.mean(controller.policy.features(seen.prompt[None]), seen.tokens[None])[0] * controller.full_ms
        if kind == "deadline":
            assert took[controller.space.index(with_it)] + 1.0 + 0.2 * with_it["vision_tokens"] < limit_ms


def test_what_cannot_be_kept_gets_the_fastest_setting_and_says_so(controller, requests):
    for budget_ms, spent_ms in ((1.0, 0.0), (1e3, 1e3), (1e3, 1e6)):
        choice = chosen(Controlled(controller, FakeClock()), requests[0], budget_ms, spent_ms=spent_ms)
        assert choice.setting == Setting(vision_tokens=16, moe_topk=1, block_skip=(2, 3, 4, 5))
        assert choice.meetable is False


def test_strict_budgets_are_refused_before_they_wait_and_when_their_turn_comes(controller, requests):
    controlled = Controlled(controller, FakeClock(), outside_of(7.0, 0.0, 0.0, 0.0))
    cheapest_ms = controller.policy.cheapest("deadline") * controller.full_ms + 7
    assert controlled.cheapest_ms(AskedBudget(ms=1.0)) == pytest.approx(cheapest_ms)
    controlled.require_meetable(AskedBudget(ms=cheapest_ms - 1))  # best effort
    controlled.require_meetable(AskedBudget(ms=cheapest_ms + 0.1, strict=True))
    with pytest.raises(Refused, match=rf"the cheapest setting needs {cheapest_ms:.1f} ms; ask for at least") as caught:
        controlled.require_meetable(AskedBudget(ms=cheapest_ms - 1, strict=True))
    assert (caught.value.status, caught.value.code) == (422, "budget_unmeetable")
    with pytest.raises(Refused, match=r"1000\.0 ms were spent when its turn came"):
        chosen(controlled, requests[0], 1000.0, spent_ms=1000.0, strict=True)


def test_a_request_smaller_than_all_that_were_measured_counts_as_the_smallest(controller, requests):
    forecast = controller.policy.forecast
    slopes = np.zeros_like(forecast.slopes)
    slopes[0] = -1.0  # fewer image tokens take longer: what no request has shown must not be concluded
    odd = replace(controller, policy=replace(controller.policy, forecast=replace(forecast, slopes=slopes)))
    with_picture, budget_ms = requests[0], 0.6 * controller.full_ms
    choice = chosen(Controlled(odd, FakeClock()), replace(with_picture, images=[]), budget_ms)
    assert choice.meetable
    assert choice.setting == chosen(Controlled(odd, FakeClock()), with_picture, budget_ms).setting


def test_the_choice_is_timed(controller, requests):
    class Ticking(FakeClock):
        def host_ns(self):
            self.advance_ms(3.0)
            return super().host_ns()

    choice = Controlled(controller, FakeClock()).choose(requests[0], AskedBudget(ms=100.0), 0.0, Ticking())
    assert choice.controller_ms == pytest.approx(3.0)


def test_a_fixed_setting_takes_all_budgets_but_strict_ones(requests):
    fixed = Fixed(setting=Setting(moe_topk=1))
    assert fixed.choose(requests[0], AskedBudget(ms=1.0), 0.0, FakeClock()).setting == Setting(moe_topk=1)
    fixed.require_meetable(AskedBudget(ms=1.0))
    with pytest.raises(Refused, match="needs a controller, and here moe_topk=1 is served alone"):
        fixed.require_meetable(AskedBudget(ms=1e6, strict=True))


def test_it_learns_from_what_was_executed(controller, requests):
    controlled = Controlled(controller, FakeClock())
    machine = Machine()
    execution = machine(None, requests[0], setting=controller.space.full)
    for _ in range(3):
        controlled.learn(requests[0], execution, 12.0)
    assert controlled.cheapest_ms(AskedBudget(ms=1.0)) > controller.policy.cheapest("deadline") * controller.full_ms


def test_a_machine_as_fast_as_its_latest_answers_were(controller, requests):
    steady, slower = (Controlled(controller, FakeClock()) for _ in range(2))
    for _ in range(30):
        slower.follow(100.0, 150.0)
    assert slower.pace.point == pytest.approx(1.5, rel=0.02)
    assert slower.full_ms == pytest.approx(1.5 * controller.full_ms, rel=0.02)
    budget = AskedBudget(ms=1.0)
    assert slower.cheapest_ms(budget) == pytest.approx(1.5 * steady.cheapest_ms(budget), rel=0.02)
    limit_ms = 0.6 * controller.full_ms
    for request in requests:
        tight, same = (chosen(slower, request, ms) for ms in (limit_ms, slower.pace.point * limit_ms))
        assert same.setting == chosen(steady, request, limit_ms).setting
        assert tight.forecast_ms <= same.forecast_ms
    slower.renew(controller)
    assert slower.full_ms == controller.full_ms


def test_the_forecast_is_of_the_chosen_setting_at_the_calibration(controller, requests):
    controlled, machine = Controlled(controller, FakeClock()), Machine()
    for _ in range(30):
        controlled.follow(100.0, 150.0)
    for request in requests[:3]:
        choice = chosen(controlled, request, 0.7 * controller.full_ms)
        typical_ms = sum(machine.typical_ms(choice.setting, request.sample.prompt))
        assert choice.forecast_ms == pytest.approx(typical_ms, rel=0.12)
