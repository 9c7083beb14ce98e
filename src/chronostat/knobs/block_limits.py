"""Which decoder blocks have to run, because others need what they make."""

from collections.abc import Collection
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from chronostat.knobs.block_form import BlockForms, block_forms
from chronostat.knobs.cache_keeping import skipped_blocks
from chronostat.knobs.probe import FAILURES, block_runner


@dataclass(frozen=True, kw_only=True)
class BlockLimits:
    """What must not be skipped.

    Attributes:
        producers: blocks whose keys and values later blocks read; they always run.
        sources: blocks that make what a later one needs beside the hidden states.
        dependents: blocks that take what the last source before them made, and fail without it.
    """

    producers: frozenset[int] = field(default_factory=frozenset)
    sources: frozenset[int] = field(default_factory=frozenset)
    dependents: frozenset[int] = field(default_factory=frozenset)

    def objection(self, skipped: Collection[int]) -> str | None:
        """Why these blocks cannot be skipped together; None if they can."""
        needed = sorted(self.producers & set(skipped))
        if needed:
            return f"later blocks read the keys and values of block {', '.join(map(str, needed))}"
        for dependent in sorted(self.dependents - set(skipped)):
            before = [index for index in sorted(self.sources) if index < dependent]
            if before and not set(before) - set(skipped):
                return f"block {dependent} needs what one of the blocks {', '.join(map(str, before))} makes"
        return None


_known: WeakKeyDictionary[nn.Module, BlockLimits] = WeakKeyDictionary()


def block_limits(model: PreTrainedModel) -> BlockLimits:
    """Seen once for each model.

    Raises:
        KnobError: it cannot be seen what the blocks of this model return.
    """
    if model not in _known:
        forms = block_forms(model)
        needed = bool(forms.dependents) and _fails_without(model, forms)
        _known[model] = BlockLimits(
            producers=forms.producers,
            sources=forms.sources if needed else frozenset(),
            dependents=forms.dependents if needed else frozenset(),
        )
    return _known[model]


def _fails_without(model: PreTrainedModel, forms: BlockForms) -> bool:
    """Whether the first block that takes what a source made fails where no source has run.

    Position biases, for example, are made anew by the first block that gets none.
    """
    first = min(forms.dependents)
    before = sorted(index for index in forms.sources if index < first)
    run_blocks = block_runner(model)
    try:
        with skipped_blocks(model, before, forms.forms):
            run_blocks()
    except FAILURES:
        return True
    return False
