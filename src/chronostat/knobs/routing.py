"""Where the decoder blocks of a model keep their number of experts per token, and whether a lower one saves work."""

import copy
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from chronostat.errors import KnobError
from chronostat.knobs.probe import PROBED_TOKENS, block_runner
from chronostat.measure.work import expert_groups, is_index
from chronostat.models.anatomy import anatomy_of

_ATTRIBUTE = "top_k"  # of routers; what the library's own are called
_CONFIG_FIELD = re.compile(r"^(top_?k_experts|num_experts_per_tok(en)?|moe_?top_?k)$")  # read at every call, if at all


@dataclass(frozen=True, kw_only=True)
class Place:
    """One number of experts per token.

    Attributes:
        path: of the module that reads it.
        field: its attribute, or a field of its configuration.
        in_config: whether it is the latter.
        trained: as the model was built.
    """

    path: str
    field: str
    in_config: bool
    trained: int


@dataclass(frozen=True, kw_only=True)
class RoutedBlock:
    """A decoder block with experts.

    Attributes:
        index: among the decoder blocks.
        places: all numbers of this block; there may be several, for several kinds of tokens or as copies.
    """

    index: int
    places: tuple[Place, ...]

    @property
    def trained(self) -> int:
        """Most experts that a token is routed to."""
        return max(place.trained for place in self.places)


_known: WeakKeyDictionary[nn.Module, tuple[RoutedBlock, ...]] = WeakKeyDictionary()


def routed_blocks(model: PreTrainedModel) -> tuple[RoutedBlock, ...]:
    """The decoder blocks in which fewer experts per token are less work; seen once for each model.

    Raises:
        KnobError: there is none; says why.
    """
    if model not in _known:
        _known[model] = _that_save_work(model)
    return _known[model]


@contextmanager
def routed_to(model: nn.Module, experts: Mapping[RoutedBlock, int]) -> Generator[None]:
    """At most so many experts per token in some blocks, each number capped at its trained value.

    A configuration is shared by all blocks, so the modules that read it get a changed copy for the length of the
    ``with``. A block that ``block_skip`` has taken out routes nothing and is left alone.
    """
    running = dict(model.named_modules())
    with ExitStack() as stack:
        for block, most in experts.items():
            for place in block.places:
                if place.path in running:
                    stack.enter_context(_set(running[place.path], place, min(most, place.trained)))
        yield


@contextmanager
def _set(module: nn.Module, place: Place, value: int) -> Generator[None]:
    name = "config" if place.in_config else place.field
    before: Any = getattr(module, name)
    changed = value
    if place.in_config:
        changed = copy.copy(before)
        setattr(changed, place.field, value)
    try:
        setattr(module, name, changed)
        yield
    finally:
        setattr(module, name, before)


def _candidates(model: PreTrainedModel) -> Iterator[list[RoutedBlock]]:
    """By the routers' own attribute, then by each field of a configuration that the blocks could read."""
    paths = anatomy_of(model).blocks
    yield _blocks([list(_attributes(model, path)) for path in paths])
    readable = [list(_config_fields(model, path)) for path in paths]
    for field in dict.fromkeys(place.field for places in readable for place in places):
        yield _blocks([[place for place in places if place.field == field] for places in readable])


def _blocks(places: Sequence[Sequence[Place]]) -> list[RoutedBlock]:
    return [RoutedBlock(index=index, places=tuple(own)) for index, own in enumerate(places) if own]


def _attributes(model: nn.Module, block: str) -> Iterator[Place]:
    for path in anatomy_of(model).routers:
        if path.startswith(f"{block}."):
            trained = getattr(model.get_submodule(path), _ATTRIBUTE)
            yield Place(path=path, field=_ATTRIBUTE, in_config=False, trained=trained)


def _config_fields(model: nn.Module, block: str) -> Iterator[Place]:
    if not any(True for _ in _experts(model.get_submodule(block))):
        return
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            for field, value in vars(config).items():
                if _CONFIG_FIELD.match(field) and type(value) is int:
                    yield Place(path=name, field=field, in_config=True, trained=value)


def _that_save_work(model: PreTrainedModel) -> tuple[RoutedBlock, ...]:
    """Those whose experts are given fewer (token, expert) pairs where the number is 1.

    Raises:
        KnobError: none is; says why.
    """
    candidates = [blocks for blocks in _candidates(model) if blocks]
    if not candidates:
        raise KnobError(f"moe_topk: {type(model).__name__} has no router with an integer top_k, it is a dense model")
    try:
        run_blocks = block_runner(model)
    except KnobError as error:
        raise KnobError(f"moe_topk: cannot see what the experts are given; {error}") from error
    with _counted_pairs(model) as full:
        run_blocks()
    for blocks in candidates:
        with _counted_pairs(model) as least, routed_to(model, dict.fromkeys(blocks, 1)):
            run_blocks()
        saving = tuple(block for block in blocks if least[block.index] < full[block.index])
        if saving:
            return saving
    raise KnobError(f"moe_topk: {_why_not(type(model).__name__, candidates[0], full)}")


def _why_not(name: str, blocks: Sequence[RoutedBlock], full: Mapping[int, int]) -> str:
    trained = max(block.trained for block in blocks)
    run = max((full.get(block.index, 0) for block in blocks), default=0) / PROBED_TOKENS
    if not run:
        return f"the experts of {name} are no modules whose inputs could be counted, so that fewer could not be proven"
    if run > trained:
        return (
            f"{name} runs {run:g} experts for each token whatever its routers choose, so choosing fewer saves no work"
        )
    if trained == 1:
        return f"{name} was built with 1 expert per token; there are no fewer"
    return f"the routers of {name} choose {run:g} experts per token whatever their top_k says, so it changes no work"


@contextmanager
def _counted_pairs(model: nn.Module) -> Generator[Counter[int]]:
    """(Token, expert) pairs at the inputs of the experts of each decoder block."""
    pairs: Counter[int] = Counter()

    def count(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pairs[index] += _pairs([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])

    with ExitStack() as stack:
        for index, path in enumerate(anatomy_of(model).blocks):
            for experts in _experts(model.get_submodule(path)):
                handle = experts.register_forward_pre_hook(
                    lambda _, args, kwargs, index=index: count(index, args, kwargs), with_kwargs=True
                )
                stack.callback(handle.remove)
        yield pairs


def _experts(block: nn.Module) -> Iterator[nn.Module]:
    """Each expert of a list, or the module that holds all of them."""
    for _, experts in expert_groups(block):
        yield from cast("list[nn.Module]", experts) if isinstance(experts, nn.ModuleList) else [experts]


def _pairs(inputs: list[Tensor]) -> int:
    """An index [tokens, experts per token] says it; without one, each row of the input is one pair."""
    for tensor in inputs:
        if is_index(tensor):
            return tensor.numel()
    return inputs[0].numel() // inputs[0].shape[-1] if inputs else 0
