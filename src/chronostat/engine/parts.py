"""One captured forward of a part beside the decoder: a vision tower or a projector, for exact shapes."""

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from chronostat.engine.causal import causal_masks_left_out
from chronostat.engine.programs import lifted
from chronostat.engine.replaying import CannotCapture, Capturing, Replay
from chronostat.errors import ChronostatError
from chronostat.models.anatomy import anatomy_of
from chronostat.models.locate import module_of, within

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is captured.

    Attributes:
        path: of the module.
        forward: the module's own.
    """

    path: str
    module: nn.Module
    forward: Callable[..., Any]


def parts_of(model: nn.Module, decoder: nn.Module) -> tuple[list[Part], dict[str, str]]:
    """The towers and projectors of a model that can be tried, and of the others why not, by path."""
    anatomy = anatomy_of(model)
    paths = tuple(dict.fromkeys((*anatomy.vision, *anatomy.projector)))
    parts: list[Part] = []
    others: dict[str, str] = {}
    for path in paths:
        module, method = module_of(model, path)
        inner = next((other for other in paths if other != path and within(other, path)), None)
        if method is not None:
            others[path] = "a method is called, and not the module"
        elif inner is not None:
            others[path] = f"{inner} lies inside, and has a time of its own"
        elif any(module is within_decoder for within_decoder in decoder.modules()):
            others[path] = "it lies inside the module that holds the decoder blocks"
        else:
            parts.append(Part(path=path, module=module, forward=module.forward))
    return parts, others


@dataclass(frozen=True, kw_only=True)
class Given:
    """The arguments of one call: tensors, which a graph reads from places of its own, and all else.

    Attributes:
        leaves: tensors and plain values, in the order of ``form``.
        form: how positional and named arguments are made of them.
    """

    leaves: Sequence[Any]
    form: TreeSpec

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Those among the leaves."""
        return (leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    def signature(self) -> Hashable:
        """What a graph for such arguments depends on."""
        return (
            self.form,
            *(
                (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)
                for leaf in self.leaves
            ),
        )


def given(args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Given:
    """The arguments of a call, sorted.

    Raises:
        CannotCapture: they hold what no graph can be given.
    """
    leaves, form = tree_flatten((args, kwargs))
    for leaf in leaves:
        _require_leaf(leaf, "is given")
        if isinstance(leaf, Tensor) and leaf.device != device:
            raise CannotCapture(f"is given a tensor on {leaf.device}, whose values the host may read")
    return Given(leaves=leaves, form=form)


Lists = Sequence[list[Any]]


@dataclass(frozen=True, kw_only=True)
class _Forward:
    """One forward of a part, and what its hooks collect meanwhile.

    Attributes:
        lists: that they add to in the call that is running.
    """

    part: Part
    arguments: Given
    lists: list[list[Any]] = field(default_factory=list[list[Any]])

    @contextmanager
    def collecting(self, lists: Lists) -> Generator[None]:
        """Hooks add to these lists meanwhile."""
        self.lists[:] = lists
        try:
            yield
        finally:
            self.lists.clear()  # a program outlives the call

    def run(self) -> tuple[list[Any], TreeSpec]:
        """The leaves of what the part returns and of what was added to the lists, which are as before."""
        args, kwargs = tree_unflatten(self.arguments.leaves, self.arguments.form)
        lengths = [len(each) for each in self.lists]
        try:
            output = self.part.forward(*args, **kwargs)
            return tree_flatten((output, [each[length:] for each, length in zip(self.lists, lengths, strict=True)]))
        finally:
            for each, length in zip(self.lists, lengths, strict=True):
                del each[length:]


@dataclass(frozen=True, kw_only=True)
class PartProgram:
    """A forward of a part that was captured.

    Attributes:
        path: of the part.
        forward: what was captured; its arguments lie where the graph reads them.
        replay: does the work; its output are the leaves of ``form``.
        form: of what the part returns, and of what its hooks add to lists.
    """

    path: str
    forward: _Forward
    replay: Replay
    form: TreeSpec

    def run(self, arguments: Given, lists: Lists) -> Any:  # noqa: ANN401 - the library's output objects
        """What the part would return, in memory of its own: a part may run several times before it is read.

        Args:
            arguments: of the call.
            lists: those that hooks inside would add to; what they would add is added.
        """
        for place, tensor in zip(self.forward.arguments.tensors, arguments.tensors, strict=True):
            place.copy_(tensor)
        with self.forward.collecting(lists):
            self.replay.run()
        leaves = (leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.replay.output)
        output, added = tree_unflatten(leaves, self.form)
        for each, more in zip(lists, added, strict=True):
            each.extend(more)
        return output


def captured_part(
    part: Part, arguments: Given, lists: Lists, capturing: Capturing, beside: Sequence[Replay]
) -> PartProgram:
    """Run a forward as it is, capture it, and see that both give the same.

    Args:
        part: what is captured.
        arguments: of the call.
        lists: those that hooks inside of the part add to.
        capturing: how.
        beside: what was captured before and is kept.

    Raises:
        CannotCapture: says why.
    """
    ordinary = _Forward(part=part, arguments=arguments)
    with lifted(part.module), ordinary.collecting(lists):
        expected, form = ordinary.run()
    for leaf in expected:
        _require_leaf(leaf, "returns")
    with _capturing(part.module):
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in arguments.leaves]
        placed = _Forward(part=part, arguments=Given(leaves=leaves, form=arguments.form))
        with placed.collecting(lists):
            replay = capturing.capture(lambda: placed.run()[0], beside, [])
            replay.run()
    if not _equal(replay.output, expected):
        raise CannotCapture("does not give the same bit for bit when it is replayed")
    return PartProgram(path=part.path, forward=placed, replay=replay, form=form)


@contextmanager
def _capturing(module: nn.Module) -> Generator[None]:
    """What a capture runs in; any error of it is a reason to run eagerly, which was seen to work."""
    try:
        with lifted(module), causal_masks_left_out():
            yield
    except ChronostatError:
        raise
    except Exception as error:  # what a part raises while its stream is captured is not known
        raise CannotCapture(f"raises {type(error).__name__} while it is captured: {error}") from error


def _require_leaf(leaf: object, verb: str) -> None:
    if type(leaf) not in (Tensor, nn.Parameter) and not isinstance(leaf, _PLAIN):
        raise CannotCapture(f"{verb} a {type(leaf).__name__}")


def _equal(leaves: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(leaves) == len(others) and all(
        torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        for one, other in zip(leaves, others, strict=True)
    )
