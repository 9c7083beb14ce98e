"""What the decoder blocks of a model take from each other, return and share, seen in one short forward."""

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeGuard, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel

from chronostat.errors import KnobError
from chronostat.knobs.probe import PROBED_TOKENS, block_runner
from chronostat.models.anatomy import anatomy_of

Slot = int | str  # an argument of a block: its position, or its name
Part = Literal["nothing", "keys and values"] | tuple[Literal["argument"], Slot]


@dataclass(frozen=True, kw_only=True)
class BlockForm:
    """What a block that does not run has to give instead.

    Attributes:
        rest: what the block returns after the hidden states: nothing (None), keys and values of its own, or what the
            next block takes as one of its arguments, so that a skipped block hands on what it was given; None if the
            block returns the hidden states bare.
        token_axis: the axis of the hidden states along which the tokens lie; the batch is the one before it.
    """

    rest: tuple[Part, ...] | None
    token_axis: int = 1


@dataclass(frozen=True, kw_only=True)
class BlockForms:
    """Of all decoder blocks of a model.

    Attributes:
        forms: of each block.
        producers: indices of blocks whose keys and values later blocks read.
        sources: indices of blocks that make something beside the hidden states which the next block takes.
        dependents: indices of blocks that take it and hand it on as it is.
    """

    forms: tuple[BlockForm, ...]
    producers: frozenset[int]
    sources: frozenset[int]
    dependents: frozenset[int]


_known: WeakKeyDictionary[nn.Module, BlockForms] = WeakKeyDictionary()


def block_forms(model: PreTrainedModel) -> BlockForms:
    """Seen once for each model, when nothing is skipped.

    Raises:
        KnobError: the blocks cannot be run, or return something that a skipped block could not.
    """
    if model not in _known:
        _known[model] = _see(model)
    return _known[model]


@dataclass(kw_only=True)
class _Call:
    """One call of a block: arguments by position and by name, output, and whether it wrote into what blocks share."""

    arguments: dict[Slot, object]
    output: object = None
    shared: bool = False

    @property
    def rest(self) -> list[object]:
        return list(self.output)[1:] if isinstance(self.output, tuple | list) else []

    def slot_of(self, thing: object) -> Slot | None:
        return next((slot for slot, value in self.arguments.items() if value is thing), None)


def _see(model: PreTrainedModel) -> BlockForms:
    blocks = [model.get_submodule(path) for path in anatomy_of(model).blocks]
    try:
        run_blocks = block_runner(model)
    except KnobError as error:
        raise KnobError(f"block_skip: cannot see what the blocks of {type(model).__name__} return; {error}") from error
    with _watched(blocks) as calls:
        run_blocks()
    parts = _parts(model, list(calls.values()))
    forms = {index: _form(call, parts) for index, call in calls.items()}
    usual = next(iter(forms.values()))  # blocks that text alone does not reach (cross-attention) are like the others
    return BlockForms(
        forms=tuple(forms.get(index, usual) for index in range(len(blocks))),
        producers=frozenset(i for i, block in enumerate(blocks) if (i in calls and calls[i].shared) or _stores(block)),
        sources=frozenset(i for i, call in calls.items() if _made(call, parts)),
        dependents=frozenset(i for i, call in calls.items() if _handed_on(call, parts)),
    )


@contextmanager
def _watched(blocks: Sequence[nn.Module]) -> Generator[dict[int, _Call]]:
    """The calls of the blocks by index, in the order in which they run."""
    calls, before = dict[int, _Call](), dict[int, dict[int, tuple[int, ...]]]()

    def note_arguments(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[index] = _Call(arguments={**dict(enumerate(args)), **kwargs})
        before[index] = _contents(calls[index])

    def note_output(index: int, output: object) -> None:
        call = calls[index]
        call.output, call.shared = output, _contents(call) != before[index]

    handles = [
        hook
        for i, block in enumerate(blocks)
        for hook in (
            block.register_forward_pre_hook(
                lambda _, args, kwargs, i=i: note_arguments(i, args, kwargs), with_kwargs=True
            ),
            block.register_forward_hook(lambda _, __, output, i=i: note_output(i, output)),
        )
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _contents(call: _Call) -> dict[int, tuple[int, ...]]:
    """What the dictionaries among the arguments hold, by identity."""
    shared = [value for value in call.arguments.values() if isinstance(value, MutableMapping)]
    return {id(mapping): tuple(map(id, mapping.values())) for mapping in shared}


def _stores(block: nn.Module) -> bool:
    """The library's own mark of attention whose keys and values others read."""
    return any(getattr(module, "store_full_length_kv", False) is True for module in block.modules())


def _parts(model: nn.Module, calls: Sequence[_Call]) -> dict[int, Part]:
    """What stands at each place after the hidden states, over all blocks.

    Raises:
        KnobError: something that a skipped block could not give.
    """
    parts: dict[int, Part] = {}
    for call, following in pairwise(calls):
        for place, thing in enumerate(call.rest):
            slot = None if thing is None else following.slot_of(thing)
            if slot is not None:
                parts[place] = ("argument", slot)
    for call in calls:
        for place, thing in enumerate(call.rest):
            if place in parts and parts[place] != "nothing":
                continue
            own = is_keys_and_values(thing) and thing[0].shape[-2] == PROBED_TOKENS
            if thing is not None and not own:
                raise KnobError(
                    f"block_skip: the blocks of {type(model).__name__} return more than the hidden states "
                    f"({', '.join(type(other).__name__ for other in call.rest)}), so none can be skipped"
                )
            parts[place] = "keys and values" if own else "nothing"
    return parts


def _form(call: _Call, parts: dict[int, Part]) -> BlockForm:
    hidden = cast("Sequence[Tensor]", call.output)[0] if isinstance(call.output, tuple | list) else call.output
    assert isinstance(hidden, Tensor)
    axes = [axis for axis, size in enumerate(hidden.shape[:-1]) if size == PROBED_TOKENS and axis]
    rest: tuple[Part, ...] | None = None
    if not isinstance(call.output, Tensor):
        rest = tuple(parts[place] for place in range(len(call.rest)))
    return BlockForm(rest=rest, token_axis=axes[0] if axes else 1)


def _made(call: _Call, parts: Mapping[int, Part]) -> bool:
    """Whether the block made something that the next one takes."""
    return any(thing is not None and call.slot_of(thing) is None for thing in _for_the_next(call, parts))


def _handed_on(call: _Call, parts: Mapping[int, Part]) -> bool:
    """Whether the block handed on something that it was given, beside the hidden states."""
    return any(thing is not None and call.slot_of(thing) is not None for thing in _for_the_next(call, parts))


def _for_the_next(call: _Call, parts: Mapping[int, Part]) -> list[object]:
    return [thing for place, thing in enumerate(call.rest) if isinstance(parts[place], tuple)]


def is_keys_and_values(value: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether this is a pair of tensors of shape [1, heads, tokens, head size]."""
    parts = cast("tuple[object, ...]", value) if isinstance(value, tuple | list) else ()
    return len(parts) == 2 and all(isinstance(part, Tensor) and part.ndim == 4 for part in parts)
