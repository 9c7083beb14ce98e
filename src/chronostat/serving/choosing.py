"""Which setting a request gets: by a controller, within what its budget leaves when its turn comes, or a fixed one."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chronostat.control.controller import Controller
from chronostat.control.drift import Pace
from chronostat.errors import ConfigError
from chronostat.evidence.linear import Floats
from chronostat.evidence.observation import Observation
from chronostat.execution.execute import SampleRequest
from chronostat.measure.clock import Clock
from chronostat.policy.policy import TooTightError
from chronostat.records import SERVED_METRICS, Budget, Estimate, Execution, LatencyMetric, Setting
from chronostat.serving.outside import Outside, sizes_of
from chronostat.wire.asks import AskedBudget
from chronostat.wire.errors import Refused

_COIN = np.random.default_rng()


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A setting for one request.

    Attributes:
        controller_ms: what choosing took.
        meetable: whether it is known to keep the budget; None: there is none, or nothing to choose.
        full_ms: what ``full`` takes as the choice was made; None: nothing was chosen.
        forecast_ms: what the setting was taken to need for this request at the calibration, by the controller's metric;
            None: nothing is forecast.
    """

    setting: Setting
    controller_ms: float = 0.0
    meetable: bool | None = None
    full_ms: float | None = None
    forecast_ms: float | None = None


class Chooser(Protocol):
    """Gives each request its setting."""

    @property
    def metric(self) -> LatencyMetric:
        """How far a budget reaches."""
        ...

    def require_meetable(self, budget: AskedBudget) -> None:
        """Refuse, before it waits, a strict budget that nothing can keep.

        Raises:
            Refused: names the cheapest.
        """
        ...

    def choose(self, request: SampleRequest, budget: AskedBudget | None, spent_ms: float, clock: Clock) -> Chosen:
        """The setting for a request whose turn has come.

        Args:
            request: with its pictures decoded.
            budget: None: no limit.
            spent_ms: since its receipt.
            clock: times the choice.
        """
        ...

    def learn(self, request: SampleRequest, execution: Execution, outside_ms: float) -> None:
        """Take what a caller waited beside what the metric counts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """One setting for all requests; budgets are compared with, and change nothing."""

    setting: Setting
    metric: LatencyMetric = "request_ms"

    def require_meetable(self, budget: AskedBudget) -> None:
        """Nothing is known of what requests take.

        Raises:
            Refused: the budget is strict.
        """
        if budget.strict:
            raise Refused(
                422,
                f"budget_policy = 'strict' needs a controller, and here {self.setting} is served alone; leave it out",
                code="no_controller",
                param="budget_policy",
            )

    def choose(self, request: SampleRequest, budget: AskedBudget | None, spent_ms: float, clock: Clock) -> Chosen:
        """The one setting."""
        del request, budget, spent_ms, clock
        return Chosen(setting=self.setting)

    def learn(self, request: SampleRequest, execution: Execution, outside_ms: float) -> None:
        """Nothing is forecast."""


class Controlled:
    """The controller's choice, on a machine as fast as its latest answers were.

    Args:
        controller: whose metric ends where a caller's wait does.
        clock: of the server.
        outside: forecasts what a caller waits beside that.

    Attributes:
        controller: the one in use.

    Raises:
        ConfigError: budgets of its metric are none of a caller's wait.
    """

    def __init__(self, controller: Controller, clock: Clock, outside: Outside | None = None) -> None:
        if controller.metric not in SERVED_METRICS:
            raise ConfigError(
                f"the controller counts in {controller.metric}, which is a part of what a caller waits; serving takes "
                f"one of {', '.join(SERVED_METRICS)}. Train it with: {_training(controller)}"
            )
        self._clock = clock
        self._outside = outside or Outside()
        self.renew(controller)

    def renew(self, controller: Controller) -> None:
        """Choose by a controller that was calibrated just now."""
        self.controller = controller
        self._pace = Pace(self._now_s)

    @property
    def _now_s(self) -> float:
        return self._clock.host_ns() / 1e9

    @property
    def pace(self) -> Estimate:
        """Latencies now, as a multiple of those at the calibration."""
        return self._pace.at(self._now_s)

    @property
    def full_ms(self) -> float:
        """What ``full`` takes now."""
        return self.controller.full_ms * self.pace.point

    def follow(self, forecast_ms: float, took_ms: float) -> None:
        """Take what an answer took, and what was forecast of it at the calibration."""
        self._pace.add(self._now_s, took_ms / forecast_ms)

    @property
    def metric(self) -> LatencyMetric:
        """The controller's."""
        return self.controller.metric

    def require_meetable(self, budget: AskedBudget) -> None:
        """Compare with the tightest budget that typical requests allow.

        Raises:
            Refused: the budget is strict and tighter.
        """
        cheapest_ms = self.cheapest_ms(budget)
        if budget.strict and budget.ms < cheapest_ms:
            raise _unmeetable(budget, f"the cheapest setting needs {cheapest_ms:.1f} ms", cheapest_ms)

    def cheapest_ms(self, budget: AskedBudget) -> float:
        """The tightest budget of a kind that typical requests allow which do not wait."""
        return self.controller.policy.cheapest(budget.kind) * self.full_ms + self._outside.least_ms

    def choose(self, request: SampleRequest, budget: AskedBudget | None, spent_ms: float, clock: Clock) -> Chosen:
        """What is spent is taken off a deadline, never off a mean; ``full`` without a budget."""
        start_ns = clock.host_ns()
        controller, full_ms = self.controller, self.full_ms
        seen = self._observed(request)
        sizes = sizes_of(request.images, seen.tokens)
        position: int | None = 0
        if budget is not None:
            position = self._within(seen, budget, self._left_ms(budget, spent_ms, sizes), full_ms)
        meetable = None if budget is None else position is not None
        if position is None:
            assert budget is not None
            if budget.strict:
                cheapest_ms = self.cheapest_ms(budget)
                raise _unmeetable(budget, f"{spent_ms:.1f} ms were spent when its turn came", cheapest_ms)
            position = controller.policy.fastest(seen)
        return Chosen(
            setting=controller.space.settings[position],
            controller_ms=clock.host_ms_since(start_ns),
            meetable=meetable,
            full_ms=full_ms,
            forecast_ms=controller.full_ms * controller.policy.typical(seen, position),
        )

    def learn(self, request: SampleRequest, execution: Execution, outside_ms: float) -> None:
        """It is forecast for the next ones."""
        image = execution.image_tokens or 0
        tokens = np.array([[image, (execution.prompt_tokens or image) - image]], dtype=np.float64)
        self._outside.add(sizes_of(request.images, tokens)[0], outside_ms)

    def _observed(self, request: SampleRequest) -> Observation:
        """A request smaller than all that latencies are known of counts as the smallest of them."""
        seen = self.controller.observer(request)
        least = self.controller.policy.requests.tokens.min(axis=0)
        return Observation(prompt=seen.prompt, tokens=np.maximum(seen.tokens, least))

    def _left_ms(self, budget: AskedBudget, spent_ms: float, sizes: Floats) -> Floats:
        """What the controller may use under each setting, [S]: preprocessing depends on it."""
        if budget.kind == "mean":
            return budget.ms - self._outside.typical_ms(sizes)
        return budget.ms - spent_ms - self._outside.most_ms(sizes)

    def _within(self, seen: Observation, budget: AskedBudget, left_ms: Floats, full_ms: float) -> int | None:
        """Position of the setting chosen within what is left under it; None: no setting can keep the budget."""
        policy, coin = self.controller.policy, float(_COIN.random())
        for limit_ms in np.unique(left_ms)[::-1].tolist():
            if limit_ms <= 0:
                return None
            try:
                position = policy.decide(seen, Budget(kind=budget.kind, fraction=limit_ms / full_ms), coin)
            except TooTightError:
                return None
            if left_ms[position] >= limit_ms:
                return position
        return None


def _unmeetable(budget: AskedBudget, why: str, cheapest_ms: float) -> Refused:
    return Refused(
        422,
        f"latency_budget_ms = {budget.ms:g} ({budget.kind}) cannot be kept: {why}; ask for at least "
        f"{cheapest_ms:.1f} ms, or leave budget_policy out to be served with the fastest setting",
        code="budget_unmeetable",
        param="latency_budget_ms",
    )


def _training(controller: Controller) -> str:
    config = controller.metadata.config
    bundled = config.model.path is None and config.data.path is None
    verb = "demo --run-dir runs/serving" if bundled else "train CONFIG.toml"
    return f"chronostat {verb} --set measure.latency_metric=request_ms"
