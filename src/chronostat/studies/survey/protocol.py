"""In which order arms are executed, and when it is enough."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from chronostat.compare.judging import Judged, Repeat, Rules, judge
from chronostat.execution.execute import explaining_errors
from chronostat.knobs.registry import applied
from chronostat.machine.stabilise import stabilised
from chronostat.measure.flow import parts_followed
from chronostat.studies.survey.arms import Arm, Plan, Shot, execute_arm, like_conditions, shoot
from chronostat.studies.survey.requests import ids_of
from chronostat.studies.survey.result import STAGES, Survey, column_of, refuse_unequal

Advance = Callable[[float, str], None]
Stopped = Callable[[], bool]
_SILENT: Advance = lambda share, note: None  # noqa: E731 - a default, not a function of its own
_NEVER: Stopped = lambda: False  # noqa: E731 - likewise


def survey(arms: Sequence[Arm], plan: Plan, *, advance: Advance = _SILENT, stopped: Stopped = _NEVER) -> Survey:
    """Measure one arm with ``plan.repeats``; judge several against the first.

    Several arms run interleaved in random order by the judge protocol (``chronostat.compare.judging``). With one
    request the next pair is the next repeat; with several it is the next request, of which each arm has the median of
    its repeats.

    Args:
        arms: with distinct names and the same requests; the first is the one that the others are compared with.
        plan: how much.
        advance: told the share that is done, and a note for people.
        stopped: asked whether to end with what there is.

    Raises:
        KnobError: an unknown knob or an illegal value; nothing has been measured then.
        ConfigError: two arms have one name, or there is no request.
        UnlikeConditions: the arms differ in more than what belongs to a model; nothing has been measured then.
        MeasurementError: the model raised something, or an arm was never executed beyond its warm-up.
    """
    for arm in arms:
        with applied(arm.setting, arm.vlm.model, arm.vlm.processor):
            pass
    with stabilised():
        conditions = like_conditions(arms, sample=plan.sample)
        _follow_parts(arms, plan)
        judged, metric = None, "prefill_ms"
        if len(arms) == 1:
            shots = repeated(arms, plan, advance=advance, stopped=stopped)
        else:
            shots, judged, metric = _judged(arms, plan, advance, stopped)
    columns = tuple(
        column_of(arm, own, [shot for shot in shots if shot.arm == index])
        for index, (arm, own) in enumerate(zip(arms, conditions, strict=True))
    )
    return Survey(
        columns=columns,
        requests=ids_of(arms[0].requests),
        metric=metric,
        comparisons=refuse_unequal(judged.comparisons, columns) if judged else {},
        noise_floor=judged.noise_floor if judged else {},
        ended=judged.ended if judged else None,
        interrupted=stopped(),
    )


def _follow_parts(arms: Sequence[Arm], plan: Plan) -> None:
    """One call of each model that does not count, to find its parts by what flows through them."""
    first = {id(arm.vlm.model): arm for arm in reversed(arms)}
    for arm in first.values():
        with explaining_errors(f"{arm.name}: {arm.requests[0].sample.id}"), parts_followed(arm.vlm.model):
            execute_arm(arm, arm.requests[0], plan)


def repeated(arms: Sequence[Arm], plan: Plan, *, advance: Advance = _SILENT, stopped: Stopped = _NEVER) -> list[Shot]:
    """Every request under every arm ``plan.repeats`` times, each round in random order; less once it is stopped.

    A shape that an arm has not seen is executed once before, as its warm-up.
    """
    rng = np.random.default_rng(plan.seed)
    slots = [(arm, request) for arm in range(len(arms)) for request in range(len(arms[0].requests))]
    warm: set[object] = set()
    drawn: Counter[tuple[int, int]] = Counter()
    shots: list[Shot] = []
    for number in range(plan.repeats):
        for done, position in enumerate(rng.permutation(len(slots)).tolist(), start=1):
            if shots and stopped():
                return shots
            arm, request = slots[position]
            shot = shoot(arms, arm, request, plan, drawn)
            if (arm, shot.shape) not in warm:
                warm.add((arm, shot.shape))
                shot = shoot(arms, arm, request, plan, drawn)
            shots.append(shot)
            advance((number * len(slots) + done) / (plan.repeats * len(slots)), f"{len(shots)} executions")
    return shots


def _judged(arms: Sequence[Arm], plan: Plan, advance: Advance, stopped: Stopped) -> tuple[list[Shot], Judged, str]:
    several = len(arms[0].requests) > 1
    drawn: Counter[tuple[int, int]] = Counter()
    first = [shoot(arms, arm, 0, plan, drawn) for arm in range(len(arms))]
    seen = all(shot.timing.source == "measured" for shot in first)
    metric = "prefill_ms" if seen else "total_ms"
    executed: list[Sequence[Shot]] = []

    def repeat(arm: int, unit: int) -> Repeat:
        request = unit % len(arms[0].requests)
        group = [shoot(arms, arm, request, plan, drawn) for _ in range(plan.repeats if several else 1)]
        executed.append(group)
        return _repeat(group, metric)

    judged = judge(
        repeat,
        len(arms),
        metric=metric,
        rules=Rules(cost_limit=len(arms[0].requests) if several else plan.repeats),
        seed=plan.seed,
        unit="sample" if several else "repeat",
        units=len(arms[0].requests) if several else None,
        advance=advance,
        stopped=stopped,
    )
    pairs = zip(judged.ran, executed, strict=True)
    return [shot for ran, group in pairs if not ran.warmup for shot in group], judged, metric


def _repeat(group: Sequence[Shot], metric: str) -> Repeat:
    """The medians of some shots of one request."""
    used = [shot for shot in group if shot.stage_ms(metric) is not None]
    calm = [shot for shot in used if shot.execution.disturbed is None]
    medians = {name: [shot.stage_ms(name) for shot in calm or used] for name in STAGES}
    return Repeat(
        latency_ms={
            name: float(np.median([ms for ms in values if ms is not None]))
            for name, values in medians.items()
            if values and all(ms is not None and ms > 0 for ms in values)
        },
        cost_ms=sum(shot.request_ms for shot in group),
        left_out=_why_left_out(group, used, calm),
        shape=group[0].shape,
    )


def _why_left_out(group: Sequence[Shot], used: Sequence[Shot], calm: Sequence[Shot]) -> str | None:
    if not used:
        return group[0].timing.unseen or "not measured"
    return None if calm else used[0].execution.disturbed
