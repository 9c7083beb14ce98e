"""A controller renewed: what settings take on this machine and day, quality untouched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from chronostat.compare.reasons import that_count
from chronostat.control.controller import Controller, choosing_ms
from chronostat.control.failures import IN_A_ROW
from chronostat.errors import MeasurementError
from chronostat.evidence.change import Change, Timed, change_of
from chronostat.evidence.latency import Forecast
from chronostat.evidence.linear import Flags, Floats, Indices
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import Request
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import Clock, clock_for
from chronostat.measure.generate import device_of
from chronostat.models.identity import fingerprint
from chronostat.policy.frontier import Requests
from chronostat.policy.policy import Policy
from chronostat.records import Estimate, Execution, Setting

LEAST = 10  # measured executions; fewer cannot tell a change from noise
_TIMED_CHOICES = 17  # requests on which choosing is timed; the first one warms up
_SURE = 1.96  # deviations on each side of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Renewed:
    """What a setting takes on average, as a fraction of what ``full`` does, without the controller's own time.

    Attributes:
        before: as it was forecast.
        now: with its 95 % interval.
        executions: of it that counted.
    """

    setting: Setting
    before: float
    now: Estimate
    executions: int

    @property
    def moved(self) -> bool:
        """Whether its interval excludes what was forecast before."""
        return not self.now.low <= self.before <= self.now.high


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """A renewed controller, and what has moved.

    Attributes:
        controller: counts in milliseconds of the conditions here.
        full_before_ms: median of its metric at ``full``, as it was.
        full_ms: as it is here.
        settings: all of the space, in its order.
        executions: that counted.
        disturbed: that did not, since something else on the machine took part.
        failed: that could not be measured.
        taken_out: settings that failed too often in a row, so that they are never chosen, with the last reason.
    """

    controller: Controller
    full_before_ms: float
    full_ms: Estimate
    settings: tuple[Renewed, ...]
    executions: int
    disturbed: int
    failed: int
    taken_out: Mapping[Setting, str]


def recalibrated(
    controller: Controller,
    model: PreTrainedModel,
    measured: Sequence[tuple[Request, Sequence[Execution]]],
    clock: Clock | None = None,
) -> Recalibration:
    """Renew what every setting takes, from executions of requests that came by; nothing is executed for it.

    Args:
        controller: to renew; it is left as it is.
        model: the model it is for, under the conditions of the executions.
        measured: requests with what was executed on each, in the order of time: ``full`` among them, and others that
            are spread over the knobs' values.
        clock: times the controller's choices; that of the model's device if absent.

    Raises:
        MeasurementError: ``full`` could not be measured, or fewer than ``LEAST`` executions could.
    """
    space, policy, config = controller.space, controller.policy, controller.metadata.config
    executions = [execution for _, each in measured for execution in each]
    counting = _counting(executions, space.full)
    timed = [each for pair in measured if (each := _timed(controller, *pair, counting=counting)) is not None]
    change = change_of(space, policy.forecast, timed, policy.requests.prompts, policy.requests.tokens)
    full_ms = controller.full_ms * change.full
    requests = [request for request, _ in measured[:_TIMED_CHOICES]]
    took_ms = choosing_ms(controller, requests, clock or clock_for(device_of(model)))
    taken_out = _failing(executions)
    legal = _legal(policy, space, executions, taken_out)
    held = replace(policy, margin=min(config.reward.margin, float(change.deviation.mean())))
    renewed = held.renewed(replace(change.forecast, controller=took_ms / full_ms), legal)
    metadata = controller.metadata.model_copy(
        update={
            "full_ms": full_ms,
            "conditions": read_conditions(model, sample=config.measure.sample),
            "model_fingerprint": fingerprint(model),
            "taken_out": tuple(str(s) for s, may_be in zip(space.settings, legal, strict=True) if not may_be),
        }
    )
    counts = np.bincount(np.concatenate([each.settings for each in timed]), minlength=len(space))
    return Recalibration(
        controller=replace(controller, policy=renewed, metadata=metadata),
        full_before_ms=controller.full_ms,
        full_ms=_interval(full_ms, change.full_deviation),
        settings=_settings(space, policy, change, counts),
        executions=int(counts.sum()),
        disturbed=sum(e.invalid is None for e in executions) - int(counts.sum()),
        failed=sum(e.invalid is not None for e in executions),
        taken_out=taken_out,
    )


def _counting(executions: Sequence[Execution], full: Setting) -> set[int]:
    """Positions of the executions whose latency counts, by the rule of means in validation.

    Raises:
        MeasurementError: there are too few, or none of ``full``.
    """
    valid = [position for position, execution in enumerate(executions) if execution.invalid is None]
    if not any(executions[position].setting == full for position in valid):
        reason = next((e.invalid for e in executions if e.setting == full), "no execution of it was handed over")
        raise MeasurementError(f"full could not be measured: {reason}; the controller is left as it is")
    if len(valid) < LEAST:
        raise MeasurementError(
            f"{len(valid)} executions could be measured, which do not tell a change from noise: at least {LEAST} are "
            "needed, 60 are enough; the controller is left as it is"
        )
    counts = that_count(np.array([executions[position].disturbed is None for position in valid]))
    return {id(executions[position]) for position, each in zip(valid, counts, strict=True) if each}


def _timed(
    controller: Controller, request: Request, executions: Sequence[Execution], *, counting: set[int]
) -> Timed | None:
    """What a request took; None where none of its executions counts."""
    counted = [execution for execution in executions if id(execution) in counting]
    if not counted:
        return None
    observation = controller.observer(request)
    return Timed(
        prompt=controller.policy.features(observation.prompt[None])[0],
        tokens=observation.tokens,
        settings=np.array([controller.space.index(execution.setting) for execution in counted]),
        fractions=np.array([execution.latency_ms(controller.metric) for execution in counted]) / controller.full_ms,
        cold=np.array([execution is executions[0] for execution in counted]),
    )


def _failing(executions: Sequence[Execution]) -> dict[Setting, str]:
    """Settings whose last executions all failed, ``IN_A_ROW`` at least, with the last reason."""
    reasons: dict[Setting, list[str]] = {}
    for execution in executions:
        if execution.invalid is None:
            reasons.pop(execution.setting, None)
        else:
            reasons.setdefault(execution.setting, []).append(execution.invalid)
    return {setting: each[-1] for setting, each in reasons.items() if len(each) >= IN_A_ROW}


def _legal(policy: Policy, space: ActionSpace, executions: Sequence[Execution], out: Mapping[Setting, str]) -> Flags:
    """What may be chosen, bool of shape [S]: what may be or works here, less what keeps failing here."""
    works = {execution.setting for execution in executions if execution.invalid is None}
    return np.array(
        [(legal or s in works) and s not in out for s, legal in zip(space.settings, policy.legal, strict=True)]
    )


def _settings(space: ActionSpace, policy: Policy, change: Change, counts: Indices) -> tuple[Renewed, ...]:
    before, now = (_fractions(forecast, policy.requests).tolist() for forecast in (policy.forecast, change.forecast))
    return tuple(
        Renewed(setting=s, before=before[i], now=_interval(now[i], change.deviation[i]), executions=int(counts[i]))
        for i, s in enumerate(space.settings)
    )


def _fractions(forecast: Forecast, requests: Requests) -> Floats:
    """Mean latency of each setting over that of ``full``, shape [S]."""
    means = forecast.mean(requests.prompts, requests.tokens).mean(axis=0) - forecast.controller
    return means / means[0]


def _interval(point: float, deviation: float) -> Estimate:
    """95 % around a point, from the deviation of its logarithm."""
    low, high = (point * float(np.exp(side * _SURE * deviation)) for side in (-1, 1))
    return Estimate(point=point, low=low, high=high)
