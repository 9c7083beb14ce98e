"""What one ``generate()`` call really did, counted by hooks: image tokens, experts per token, blocks, elements read.

Counting changes no result. It costs a little time, so calls that are counted are not the ones whose latency is used.
"""

import functools
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chronostat.measure.hooks import restorer
from chronostat.models.anatomy import anatomy_of
from chronostat.models.blocks import SkippedBlock, running_blocks
from chronostat.models.calls import watching_calls
from chronostat.models.locate import module_of
from chronostat.models.prepare import count_image_tokens

WorkName = Literal[
    "image_tokens", "vision_inputs", "experts_per_token", "blocks_run", "prefill_inputs", "forwards"
]  # the fields of Work


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call did.

    Attributes:
        image_tokens: as ``count_image_tokens`` says; None where it is not known.
        vision_inputs: elements of the tensors that entered the vision tower; None without a tower.
        experts_per_token: (token, expert) pairs at the experts' inputs in the decoder blocks, per token; None where no
            experts were called.
        blocks_run: decoder blocks that were called.
        prefill_inputs: elements of the tensors that modules without parts, and experts, read before the second pass.
        forwards: passes through the decoder: the prefill and each decode step.
    """

    image_tokens: int | None
    vision_inputs: int | None
    experts_per_token: float | None
    blocks_run: int
    prefill_inputs: int
    forwards: int

    def count(self, name: WorkName) -> float | None:
        """One of the numbers by name."""
        return getattr(self, name)


def removed(name: WorkName, full: Work, work: Work) -> bool:
    """Whether a count fell below that of full; not where one of them is unknown."""
    before, after = full.count(name), work.count(name)
    return before is not None and after is not None and after < before


def changed(name: WorkName, full: Work, work: Work) -> bool:
    """Whether a count is another one than that of full; not where one of them is unknown."""
    before, after = full.count(name), work.count(name)
    return before is not None and after is not None and after != before


@contextmanager
def counted_work(model: nn.Module) -> Generator[list[Work]]:
    """The work of every ``model.generate()`` inside the ``with``, in the order of the calls.

    A call that raises is counted up to there. The hooks of a call exist during the call only, so what a knob has put
    into the model by then is what is counted.
    """
    done: list[Work] = []
    watched: Any = model
    original, restore = watched.generate, restorer(model, "generate")
    opened: list[_Tally] = []

    @contextmanager
    def counting(_: object) -> Generator[_Tally]:
        if opened:
            yield opened[0]
            return
        opened.append(_Tally())
        try:
            with _hooked(model, opened[0]):
                yield opened[0]
        finally:
            opened.clear()

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever generate takes
        with counting(kwargs) as tally:
            try:
                return original(*args, **kwargs)
            finally:
                done.append(tally.work(count_image_tokens(model, kwargs)))

    watched.generate = counted
    try:
        with watching_calls(model, counting):
            yield done
    finally:
        restore()


@dataclass(kw_only=True)
class _Tally:
    """Running counts of one call."""

    vision_inputs: int | None = None
    pairs: int = 0
    routed_tokens: int = 0
    blocks: set[int] = field(default_factory=set)
    prefill_inputs: int = 0
    forwards: int = 0

    def work(self, image_tokens: int | None) -> Work:
        return Work(
            image_tokens=image_tokens,
            vision_inputs=self.vision_inputs,
            experts_per_token=self.pairs / self.routed_tokens if self.routed_tokens else None,
            blocks_run=len(self.blocks),
            prefill_inputs=self.prefill_inputs,
            forwards=self.forwards,
        )


Inputs = list[Tensor]


@contextmanager
def _hooked(model: nn.Module, tally: _Tally) -> Generator[None]:
    """Hooks that fill a tally."""
    with ExitStack() as stack:

        def on_call(module: nn.Module, note: Callable[[Inputs], None]) -> None:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                note([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])

            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

        anatomy = anatomy_of(model)
        for path in anatomy.vision:
            tally.vision_inputs = 0
            on_call(module_of(model, path)[0], functools.partial(_note_vision, tally))
        # before its parts: a block begins its pass
        for index, block in enumerate(running_blocks(model, anatomy.blocks)):
            on_call(block, functools.partial(_note_block, tally, index))
            for holder, experts in expert_groups(block):
                _hook_experts(holder, experts, on_call, tally)
        for module in _reading_modules(model):
            on_call(module, functools.partial(_note_inputs, tally))
        yield


def _note_vision(tally: _Tally, inputs: Inputs) -> None:
    if tally.forwards < 2:
        tally.vision_inputs = (tally.vision_inputs or 0) + sum(tensor.numel() for tensor in inputs)


def _note_block(tally: _Tally, index: int, _: Inputs) -> None:
    tally.blocks.add(index)
    tally.forwards += index == 0


def _note_inputs(tally: _Tally, inputs: Inputs) -> None:
    if tally.forwards < 2:
        tally.prefill_inputs += sum(tensor.numel() for tensor in inputs)


def _hook_experts(
    holder: nn.Module, experts: nn.Module, on_call: Callable[[nn.Module, Callable[[Inputs], None]], None], tally: _Tally
) -> None:
    """Count pairs where they enter: as an index tensor [tokens, experts per token], or as rows of the experts' input.

    Rows are those of tokens that entered what holds the experts.
    """
    entered = [0]

    def note_tokens(inputs: Inputs) -> None:
        entered[0] = _rows(inputs)

    def note_pairs(inputs: Inputs) -> None:
        index = next((tensor for tensor in inputs if is_index(tensor)), None)
        if index is not None:
            tally.pairs += index.numel()
            tally.routed_tokens += index.numel() // index.shape[-1]
            return
        tally.pairs += _rows(inputs)
        tally.routed_tokens += entered[0]
        entered[0] = 0  # counted once, also where several experts read them

    on_call(holder, note_tokens)
    for module in experts if isinstance(experts, nn.ModuleList) else (experts,):
        on_call(module, note_pairs)


def expert_groups(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """What holds the experts of a block, and the experts: one module for all of them, or a list of modules."""
    for holder in block.modules():
        for name, child in holder.named_children():
            if name == "experts" or type(child).__name__.endswith("Experts"):
                yield holder, child


def is_index(tensor: Tensor) -> bool:
    """Whether an input of experts says by number which ones each token is given to."""
    return not tensor.is_floating_point() and tensor.dtype != torch.bool and tensor.ndim > 1


def _rows(inputs: Inputs) -> int:
    """Tokens in the first tensor, whose last dimension is the width of the model."""
    return inputs[0].numel() // inputs[0].shape[-1] if inputs else 0


def _reading_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Modules without parts, and modules that hold all experts of a block; those of skipped blocks are none."""
    for module in model.modules():
        is_whole = not any(True for _ in module.children())
        if (is_whole or type(module).__name__.endswith("Experts")) and not isinstance(module, SkippedBlock):
            yield module
