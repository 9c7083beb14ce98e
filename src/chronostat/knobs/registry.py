"""The knobs by name, and settings applied to a model.

A new knob is one file with a subclass of ``Knob`` and one line in ``KNOBS``.
"""

from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.knobs.block_skip import BlockSkip
from chronostat.knobs.drop_after import DropAfter
from chronostat.knobs.image_keep import ImageKeep
from chronostat.knobs.moe_topk import MoeTopk
from chronostat.knobs.space import ActionSpace, pruning
from chronostat.knobs.vision_tokens import VisionTokens
from chronostat.records import KnobValue, Setting

KNOBS: dict[str, type[Knob]] = {knob.name: knob for knob in (VisionTokens, MoeTopk, BlockSkip, ImageKeep, DropAfter)}


def find_knob(name: str, model: PreTrainedModel, processor: ProcessorMixin | None) -> Knob:
    """One knob of a model.

    Raises:
        KnobError: no such knob, or the model does not have it.
    """
    if name not in KNOBS:
        raise KnobError(f"unknown knob {name!r}; known knobs: {', '.join(KNOBS)}")
    return KNOBS[name].find(model, processor)


def find_space(
    model: PreTrainedModel, processor: ProcessorMixin | None, levels: Mapping[str, Any]
) -> tuple[ActionSpace, dict[str, str]]:
    """The action space of a model, and for each absent knob the reason.

    Args:
        model: the model.
        processor: its processor; without one (ready batches) there is no ``vision_tokens``.
        levels: values to offer by knob; None or absent: what the knob offers by itself. What shapes that
            (``Knob.options``) may be among them.

    Raises:
        KnobError: an illegal value, a value or option asked for on a knob that the model does not have, an option that
            does not fit the model or stands beside values of its knob, or no knob at all.
    """
    options = {name: levels.get(name) for kind in KNOBS.values() for name in kind.options}
    knobs: dict[str, Knob] = {}
    found: dict[str, tuple[KnobValue, ...]] = {}
    absent: dict[str, str] = {}
    for name in dict.fromkeys([*(name for name in levels if name not in options), *KNOBS]):
        asked = levels.get(name)
        try:
            knob = find_knob(name, model, processor)
        except KnobError as error:
            if asked is not None or name not in KNOBS or any(options[option] for option in KNOBS[name].options):
                raise
            absent[name] = str(error)
            continue
        _require_no_idle_option(name, asked, options)
        reason = knob.stands_back(found) if asked is None else None
        if reason is not None:
            absent[name] = f"{name}: {reason}"
            continue
        offered = knob.offered(options) if asked is None else tuple(knob.reached(value) for value in asked)
        knobs[name] = knob
        found[name] = tuple(dict.fromkeys([knob.full, *offered]))
    if not found:
        raise KnobError(f"{type(model).__name__} has no knob: {'; '.join(absent.values())}")
    return _pruned_space(knobs, found), absent


def _require_no_idle_option(name: str, asked: object, options: Mapping[str, Any]) -> None:
    """Options shape the values that a knob offers by itself, so beside named values nothing would read them."""
    idle = [option for option in KNOBS[name].options if options[option]]
    if asked is not None and idle:
        raise KnobError(
            f"knobs.{name} names the values to offer, so knobs.{idle[0]} would change nothing; give one of them"
        )


def _pruned_space(knobs: Mapping[str, Knob], levels: Mapping[str, Sequence[KnobValue]]) -> ActionSpace:
    """The legal combinations that differ in what they do, of the values that are left in any of them."""

    def objection(setting: Setting) -> str | None:
        reasons = (knob.objection(setting[name], setting) for name, knob in knobs.items())
        return next((reason for reason in reasons if reason), None)

    def effect(setting: Setting) -> Hashable:
        return tuple(knob.effect(setting[name], setting) for name, knob in knobs.items())

    pruned = pruning(levels, objection, effect)
    kept = ActionSpace(levels, pruned).settings
    used = {name: [value for value in values if any(s[name] == value for s in kept)] for name, values in levels.items()}
    return ActionSpace(used, pruned)


def tokens_read(
    setting: Setting, model: PreTrainedModel, processor: ProcessorMixin | None, image_tokens: int | None
) -> int | None:
    """How many of the image tokens of a ready batch the language model reads under a setting; None: it is not known."""
    for name, value in setting.items():
        if image_tokens is not None:
            image_tokens = find_knob(name, model, processor).reads(value, image_tokens)
    return image_tokens


@contextmanager
def applied(setting: Setting, model: PreTrainedModel, processor: ProcessorMixin | None) -> Generator[dict[str, Any]]:
    """The model under a setting for the length of the ``with``; bit-equal afterwards, also when it raises.

    Yields:
        What the image processor is to be called with meanwhile. It is settled before anything is set: under a setting a
        processor may say of itself that it can do less.

    Raises:
        KnobError: an unknown knob or an illegal value; the model is untouched then.
    """
    pairs = [(find_knob(name, model, processor), value) for name, value in setting.items()]
    image_arguments: dict[str, Any] = {}
    for knob, value in pairs:
        knob.check(value)
        image_arguments |= knob.image_arguments(value)
    with ExitStack() as stack:
        for knob, value in pairs:
            stack.enter_context(knob.applied(model, value))
        yield image_arguments
