"""At the start of a run each knob proves itself on its model.

It changes the counted work, it is undone bit for bit, and a learner's first update reaches it. Nothing is executed for
this: the warm-up that a run has anyway is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.control.learners.base import Learner
from chronostat.errors import KnobError, MeasurementError
from chronostat.execution.execute import SampleRequest
from chronostat.execution.trials import TrialInput, TrialRunner
from chronostat.knobs.base import Knob
from chronostat.knobs.registry import applied, find_knob
from chronostat.knobs.space import ActionSpace
from chronostat.measure.work import Work, WorkName, changed, counted_work
from chronostat.models.prepare import prepare
from chronostat.models.weights import (
    State,
    differences,
    first_difference,
    state_of,
    weights_checksum,
    without_memory,
)
from chronostat.records import KnobValue, Setting, Trial, value_text

_OTHER_SAMPLES = 15  # on which a knob that did nothing on the first one is looked for, without executing
_WAY_OUT = "or offer only its full value in the section [knobs]"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How one knob proved that it acts.

    Attributes:
        count: the count that changed.
        full: that count under the full value.
        values: that count under each value that was executed, as text; one under which it is not known is absent.
        idle: values under which the count did not change on the sample that was counted.
    """

    count: WorkName
    full: float
    values: Mapping[str, float]
    idle: tuple[str, ...]


def prove_knobs(
    runner: TrialRunner,
    space: ActionSpace,
    trial_inputs: Sequence[TrialInput],
    *,
    index: int,
    weights: Mapping[str, int],
) -> Mapping[str, Proof]:
    """Execute every setting once as warm-up trial number ``index``, and see that each knob acts and is undone.

    Args:
        runner: executes; the model must have been executed before, since libraries set hooks at the first call.
        space: the settings.
        trial_inputs: samples or ready batches to train on; the first one is executed.
        index: number of the warm-up trial.
        weights: ``weights_checksum`` of the model before its first execution.

    Returns:
        The proof of each knob that varies in the space.

    Raises:
        KnobError: a knob changes no work on this model and data, or leaves something behind; says what.
        MeasurementError: the warm-up could not be executed, so that nothing could be counted.
    """
    model, processor = runner.model, runner.processor
    knobs = {name: find_knob(name, model, processor) for name in varying_knobs(space.settings)}
    state = state_of(model, processor)
    touched = {name: _undone(knobs[name], space, model, processor, state) for name in knobs}
    with counted_work(model) as works:
        trial = runner.run("warmup", index, runner.request(trial_inputs[0]), space.settings)
    _require_untouched(model, processor, state, touched, weights)
    counted = _by_setting(trial, works)
    return {name: _proof(knob, space, counted, runner, trial_inputs) for name, knob in knobs.items()}


def varying_knobs(settings: Sequence[Setting]) -> list[str]:
    """The knobs that have more than one value in some settings."""
    return [name for name in settings[0] if len({setting[name] for setting in settings}) > 1]


def metadata_of(proofs: Mapping[str, Proof]) -> dict[str, Any]:
    """Plain data for ``run.json``."""
    return {name: {**asdict(proof), "idle": list(proof.idle)} for name, proof in proofs.items()}


def require_gradients(learner: Learner, settings: Sequence[Setting]) -> Mapping[str, float]:
    """See that the update that a learner has just made reached the head of every knob that varies in the settings.

    Args:
        learner: after an update.
        settings: those that can still be chosen.

    Returns:
        For each head the length of its gradient; empty for a learner without gradients.

    Raises:
        KnobError: a head got none, so that its knob would never be learned.
    """
    fixed = set(settings[0]) - set(varying_knobs(settings))
    gradients = {name: length for name, length in learner.head_gradients().items() if name not in fixed}
    dead = [name for name, length in gradients.items() if not length > 0]
    if dead:
        raise KnobError(
            f"self-check: the first update gave no gradient to {', '.join(dead)}, so it would never be learned which "
            f"values to choose; repair {type(learner).__name__}, or offer only full values in the section [knobs]"
        )
    return gradients


def _undone(
    knob: Knob, space: ActionSpace, model: PreTrainedModel, processor: ProcessorMixin | None, before: State
) -> set[tuple[str, str]]:
    """Apply and undo each value; the places that differed meanwhile.

    Raises:
        KnobError: something stayed.
    """
    touched: set[tuple[str, str]] = set()
    for value in space.levels[knob.name][1:]:
        with applied(Setting({knob.name: value}), model, processor):
            touched |= differences(before, state_of(model, processor))
        _require_equal(before, state_of(model, processor), f"{knob.name} = {value} is not undone")
    return touched


def _require_untouched(
    model: PreTrainedModel,
    processor: ProcessorMixin | None,
    before: State,
    touched: Mapping[str, set[tuple[str, str]]],
    weights: Mapping[str, int],
) -> None:
    """The same after executions: what knobs touch, what no call changes, and every bit of the weights."""
    after = state_of(model, processor)
    for name, places in touched.items():
        mine, now_mine = ({place: state.get(place) for place in places} for state in (before, after))
        _require_equal(mine, now_mine, f"{name} is not undone after an execution")
    knobs = " or ".join(touched) or "the warm-up"
    _require_equal(without_memory(before), without_memory(after), f"{knobs} changes the model for good")
    now = weights_checksum(model)
    moved = [name for name in weights.keys() | now.keys() if weights.get(name) != now.get(name)]
    if moved:
        raise KnobError(
            f"self-check: {knobs} changes weights: {', '.join(sorted(moved)[:3])}; a knob must leave every bit as it "
            f"was, repair it {_WAY_OUT}"
        )


def _require_equal(before: State, after: State, what: str) -> None:
    place = first_difference(before, after)
    if place is None:
        return
    path, name = place
    raise KnobError(
        f"self-check: {what}: {name} of {path or 'the model'} was {before.get(place)!r} and is {after.get(place)!r}; a "
        f"knob must leave everything as it was, repair it {_WAY_OUT}"
    )


def _by_setting(trial: Trial, works: Sequence[Work]) -> Mapping[Setting, Work]:
    """The work of each setting whose execution went through."""
    called = [execution for execution in trial.executions if execution.called]
    went_through = [execution for execution in called if execution.timing is not None]
    if len(works) != len(called) or not went_through:
        failed = [execution for execution in trial.executions if execution.timing is None]
        reason = failed[0].invalid if failed else "generate() of the model was replaced"
        raise MeasurementError(f"the self-check could not count the work of the warm-up: {reason}")
    pairs = zip(called, works, strict=True)
    return {execution.setting: work for execution, work in pairs if execution.timing is not None}


def _proof(
    knob: Knob,
    space: ActionSpace,
    counted: Mapping[Setting, Work],
    runner: TrialRunner,
    trial_inputs: Sequence[TrialInput],
) -> Proof:
    seen = _seen(knob, space, counted)
    if not seen:
        raise MeasurementError(f"the self-check could not execute {knob.name} under full and another value")
    for name in knob.work:
        if any(changed(name, full, work) for full, work in seen.values()):
            return _proved(name, seen)
    last = list(seen)[-1]
    proof = _on_other_samples(knob, last, runner, trial_inputs)
    if proof is None:
        unchanged = ", ".join(f"{name} stays {_text(seen[last][0].count(name))}" for name in knob.work)
        raise KnobError(
            f"self-check: {knob.name} changes no work here: under {knob.name} = {value_text(last)}, {unchanged} "
            f"({knob.mechanism}); repair the knob {_WAY_OUT}"
        )
    return proof


def _seen(knob: Knob, space: ActionSpace, counted: Mapping[Setting, Work]) -> Mapping[KnobValue, tuple[Work, Work]]:
    """For each value the work under full and under the value, the other knobs alike, at full where that was run."""
    seen: dict[KnobValue, tuple[Work, Work]] = {}
    for value in space.levels[knob.name][1:]:
        settings = [setting for setting in space.settings if setting[knob.name] == value and setting in counted]
        for setting in settings:  # in the order of the space the others are at full first
            full = Setting({**setting, knob.name: knob.full})
            if full in counted:
                seen[value] = (counted[full], counted[setting])
                break
    return seen


def _proved(name: WorkName, seen: Mapping[KnobValue, tuple[Work, Work]]) -> Proof:
    whole = next(iter(seen.values()))[0].count(name)
    assert whole is not None, "a count that changed was there"
    return Proof(
        count=name,
        full=whole,
        values={value_text(value): n for value, (_, work) in seen.items() if (n := work.count(name)) is not None},
        idle=tuple(value_text(value) for value, works in seen.items() if not changed(name, *works)),
    )


def _on_other_samples(
    knob: Knob, value: KnobValue, runner: TrialRunner, trial_inputs: Sequence[TrialInput]
) -> Proof | None:
    """Whether a value changes what the processor makes of another sample: the first image may be too small for it."""
    for trial_input in trial_inputs[1 : 1 + _OTHER_SAMPLES]:
        request = runner.request(trial_input)
        if not isinstance(request, SampleRequest):
            return None
        full, small = (_elements(runner.model, request, Setting({knob.name: v})) for v in (knob.full, value))
        if small != full:
            text = value_text(value)
            return Proof(count="prefill_inputs", full=full, values={text: small}, idle=())
    return None


def _elements(model: PreTrainedModel, request: SampleRequest, setting: Setting) -> int:
    """Elements of the tensors that a sample becomes under a setting."""
    with applied(setting, model, request.processor) as image_arguments:
        batch = prepare(
            request.processor,
            request.images,
            request.sample.asked,
            device=torch.device("cpu"),
            dtype=model.dtype,
            image_arguments=image_arguments,
        )
    return sum(tensor.numel() for tensor in batch.values())


def _text(count: float | None) -> str:
    return "unknown" if count is None else f"{count:g}"
