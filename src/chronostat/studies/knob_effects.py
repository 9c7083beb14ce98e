"""What each value of each knob does on one model: the work it takes away, counted, and the time it saves, judged."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import GenerationConfig

from chronostat.compare.judging import Judged, Repeat, Rules, judge
from chronostat.errors import MeasurementError
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import Request, execute, explaining_errors, require_replayed, without_capturing
from chronostat.knobs.base import Knob
from chronostat.knobs.registry import find_knob
from chronostat.knobs.space import ActionSpace
from chronostat.machine.stabilise import stabilised
from chronostat.measure.clock import Clock
from chronostat.measure.flow import parts_followed
from chronostat.measure.generate import Measured
from chronostat.measure.work import Work, changed, counted_work, removed
from chronostat.models.load import Vlm
from chronostat.records import Comparison, Conditions, Execution, KnobValue, Setting, Source, plain
from chronostat.runs.workload import BareModel

PREFILL, DECODE, TOTAL = "prefill_ms", "decode_ms_per_token", "total_ms"
NO_WORK = "removes no work here"
MORE_WORK = "adds work"
NO_TIME = "removes work, saves no time here"
OPEN = "removes work; whether that saves time is undecided"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One value of one knob, the others at full.

    Attributes:
        work: what one execution did.
        removes_work: whether a count that the knob names fell below that of full.
        changes_work: whether it is another one; some knobs have values that add work.
        comparisons: by latency, against full; one without a pair says why in its flags. A latency that no setting has
            is absent.
        flag: what a reader should know before offering the value; None where it saves time.
    """

    knob: str
    value: KnobValue
    setting: Setting
    work: Work
    removes_work: bool
    changes_work: bool
    comparisons: Mapping[str, Comparison]
    flag: str | None


@dataclass(frozen=True, kw_only=True)
class Effects:
    """The knobs of one model on one request.

    Attributes:
        mechanisms: by knob, what it changes on this model.
        absent: by knob that the model does not have, the reason.
        full: the work of full.
        effects: one for each value below full, in the order of the space.
        executions: how many were executed and judged, warm-up and counting included.
        ended: why judging ended, in words.
    """

    model: str
    fingerprint: str
    conditions: Conditions
    source: Source
    space: ActionSpace
    mechanisms: Mapping[str, str]
    absent: Mapping[str, str]
    full: Work
    effects: tuple[Effect, ...]
    executions: int
    ended: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; a bound that too few pairs have not given is None."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "conditions": asdict(self.conditions),
            "space": self.space.to_json(),
            "settings": len(self.space),
            "mechanisms": dict(self.mechanisms),
            "absent": dict(self.absent),
            "full": asdict(self.full),
            "effects": [{**plain(asdict(effect)), "setting": str(effect.setting)} for effect in self.effects],
            "executions": self.executions,
            "ended": self.ended,
        }


def measure_effects(
    vlm: Vlm | BareModel,
    request: Request,
    space: ActionSpace,
    absent: Mapping[str, str],
    *,
    new_tokens: int,
    repeats: int,
    seconds: float | None = None,
    seed: int = 0,
    clock: Clock | None = None,
    advance: Callable[[float, str], None] = lambda fraction, note: None,
) -> Effects:
    """Count the work of full and of every value of every knob once, then judge their latencies against full.

    Answers are made ``new_tokens`` long, so that all settings decode equally many tokens.

    Args:
        vlm: model and processor.
        request: the one request.
        space: the values.
        absent: by knob that the model does not have, the reason.
        new_tokens: length of every answer.
        repeats: most executions of each setting on average; those whose verdict is known get fewer.
        seconds: time for judging, if it ends before; at least one execution of each setting.
        seed: draws the order.
        clock: the device's own if absent.
        advance: told how much of the limit is spent, and a note for people.

    Raises:
        KnobError: the space does not fit the model.
        MeasurementError: the stages were seen under some settings only, or the model raised something.
    """
    knobs = {name: find_knob(name, vlm.model, vlm.processor) for name in space.levels}
    values = [(name, value) for name, levels in space.levels.items() for value in levels[1:]]
    arms = [space.full, *(Setting({**space.full, name: value}) for name, value in values)]
    fixed_length = GenerationConfig(min_new_tokens=new_tokens)

    def run(arm: int, seen: Callable[[Measured], None] | None = None) -> Execution:
        with explaining_errors(f"{arms[arm]}: the request"):
            return execute(
                vlm.model,
                request,
                setting=arms[arm],
                max_new_tokens=new_tokens,
                generation_config=fixed_length,
                clock=clock,
                seen=seen,
            )

    def run_by_engine(arm: int) -> Execution:
        execution, measured = without_capturing(functools.partial(run, arm))
        require_replayed(measured, str(arms[arm]))
        return execution

    with stabilised():
        with parts_followed(vlm.model):
            run(0)  # the first call of a process pays for what later ones find ready
        with counted_work(vlm.model) as works:
            counted = [run(arm) for arm in range(len(arms))]
        metric, source = _one_source(counted)
        one_shot_ms = sum(_cost_ms(execution) for execution in counted)
        limit = repeats if seconds is None else max(1.0, min(repeats, 1e3 * seconds / one_shot_ms))
        judged = _judged(run_by_engine, len(arms), metric, limit, seed, advance)
        conditions = read_conditions(vlm.model)
    return Effects(
        model=vlm.name,
        fingerprint=vlm.fingerprint,
        conditions=conditions,
        source=source,
        space=space,
        mechanisms={name: knob.mechanism for name, knob in knobs.items()},
        absent=absent,
        full=works[0],
        effects=tuple(
            _effect(knobs[name], value, arms[arm], works[0], works[arm], judged, arm)
            for arm, (name, value) in enumerate(values, start=1)
        ),
        executions=len(judged.ran) + len(arms) + 1,
        ended=judged.ended,
    )


def _judged(
    run: Callable[[int], Execution],
    arms: int,
    metric: str,
    limit: float,
    seed: int,
    advance: Callable[[float, str], None],
) -> Judged:
    def repeat(arm: int, _: int) -> Repeat:
        execution = run(arm)
        timing = execution.timing
        assert timing is not None, "execute() raises where it does not measure"
        seen = {name: getattr(timing, name) for name in dict.fromkeys([metric, DECODE, TOTAL])}
        latency_ms = {name: value for name, value in seen.items() if value is not None}
        if metric not in latency_ms:
            failed = None if timing.unseen else f"no {metric}"
            return Repeat(latency_ms={}, cost_ms=_cost_ms(execution), left_out=timing.unseen, failed=failed)
        return Repeat(latency_ms=latency_ms, cost_ms=_cost_ms(execution), left_out=execution.disturbed)

    return judge(repeat, arms, metric=metric, rules=Rules(cost_limit=limit), seed=seed, advance=advance)


def _cost_ms(execution: Execution) -> float:
    request_ms = execution.request_ms
    assert request_ms is not None, "execute() raises where it does not measure"
    return request_ms


def _one_source(executions: Sequence[Execution]) -> tuple[str, Source]:
    """The latency that is judged, and where it comes from.

    Raises:
        MeasurementError: the settings do not have one source.
    """
    sources: set[Source] = {execution.timing.source for execution in executions if execution.timing is not None}
    if len(sources) != 1:
        raise MeasurementError(
            f"the stages are seen under some settings only ({', '.join(sorted(sources))}), so that these cannot be "
            "compared; name the model's parts with model.layout, or leave a knob out with --set knobs.NAME=[FULL]"
        )
    source = sources.pop()
    return (PREFILL if source == "measured" else TOTAL), source


def _effect(knob: Knob, value: KnobValue, setting: Setting, full: Work, work: Work, judged: Judged, arm: int) -> Effect:
    removes, changes = (any(is_so(name, full, work) for name in knob.work) for is_so in (removed, changed))
    found = {metric: by_arm[arm] for metric, by_arm in judged.comparisons.items()}
    return Effect(
        knob=knob.name,
        value=value,
        setting=setting,
        work=work,
        removes_work=removes,
        changes_work=changes,
        comparisons=found,
        flag=_flag([each.verdict for each in found.values() if each.pairs], removes=removes, changes=changes),
    )


def _flag(verdicts: Sequence[str], *, removes: bool, changes: bool) -> str | None:
    if not removes:
        return MORE_WORK if changes else NO_WORK
    if "faster" in verdicts:
        return None
    return OPEN if {"undecided", "invalid"} & set(verdicts) or not verdicts else NO_TIME
