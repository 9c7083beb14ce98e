"""``drop_after``: after how many decoder blocks image tokens leave."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature, unwrap
from typing import Any, NamedTuple, Self

from transformers import DynamicCache, GenerationMixin, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DynamicLayer

from chronostat.errors import KnobError
from chronostat.knobs.base import Knob
from chronostat.knobs.block_form import block_forms
from chronostat.measure.replays import engine_of
from chronostat.models.anatomy import anatomy_of
from chronostat.models.prepare import image_token_id
from chronostat.records import KnobValue
from chronostat.tokens.leaving import Leaving


class Leave(NamedTuple):
    """A value taken apart: how many blocks run with all tokens, and the share of the image tokens that stays."""

    after: int
    share: float


class DropAfter(Knob):
    """Image tokens leave the decoder after its first k blocks: the value is k, or k and the share that stays.

    ``8``: none of them goes on to the ninth block. ``8:0.25``: a quarter does, those that the last token of the prompt
    attends to most in the eighth. Full is the number of blocks.

    Args:
        block_count: decoder blocks of the model.
    """

    name = "drop_after"
    work = ("prefill_inputs",)

    def __init__(self, block_count: int) -> None:
        self._block_count = block_count
        self.levels = tuple(dict.fromkeys([block_count, max(1, block_count // 2), max(1, block_count // 4)]))

    @classmethod
    def find(cls, model: PreTrainedModel, processor: ProcessorMixin | None) -> Self:
        """See that image tokens are known by their places, and that blocks share nothing but hidden states."""
        reason = _objection(model)
        if reason is not None:
            raise KnobError(f"drop_after: {type(model).__name__} {reason}")
        return cls(len(anatomy_of(model).blocks))

    @property
    def mechanism(self) -> str:
        """Where they leave."""
        return f"image tokens leave between two of the {self._block_count} decoder blocks"

    def stands_back(self, others: Collection[str]) -> str | None:
        """It is never offered by itself: it runs eagerly alone, and what it loses depends much on the model."""
        return "runs eagerly alone; knobs.drop_after offers it"

    def check(self, value: KnobValue) -> None:
        """A number of blocks, or that and a share below 1."""
        self._leave(value)

    def objection(self, value: KnobValue, setting: Mapping[str, KnobValue]) -> str | None:
        """The block whose attention says what stays has to run."""
        leave, skipped = self._leave(value), setting.get("block_skip", ())
        if leave is not None and leave.share and isinstance(skipped, tuple) and leave.after - 1 in skipped:
            return f"block {leave.after - 1}, whose attention says which image tokens stay, is skipped"
        return None

    def applied(self, model: PreTrainedModel, value: KnobValue) -> AbstractContextManager[None]:
        """Hooks at the decoder blocks.

        Raises:
            KnobError: the model runs by the engine "graph".
        """
        leave = self._leave(value)
        if leave is None:
            return nullcontext()
        if engine_of(model) == "graph":
            raise KnobError(
                f"drop_after = {value}: graphs hold one number of tokens for all blocks; use the engine 'eager', or "
                "leave drop_after out"
            )
        return Leaving(model, leave.after, leave.share).installed()

    def _leave(self, value: KnobValue) -> Leave | None:
        """None for full."""
        blocks, _, share = value.partition(":") if isinstance(value, str) else (str(value), "", "0")
        whole = type(value) is int or isinstance(value, str)
        if whole and blocks.isdecimal() and 1 <= int(blocks) <= self._block_count and 0 <= _share(share) < 1:
            after = int(blocks)
            if isinstance(value, int):
                return None if after == self._block_count else Leave(after, 0.0)
            if after < self._block_count and _share(share) > 0:
                return Leave(after, _share(share))
        raise self.refuse(
            value,
            f"1 to {self._block_count} blocks, or fewer than {self._block_count} and the share of image tokens that "
            "stays, such as 1:0.5",
        )


def _share(text: str) -> float:
    """The number that a text is, -1 if it is none."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def _objection(model: PreTrainedModel) -> str | None:
    """Why image tokens cannot leave between the blocks of a model."""
    if model.config.is_encoder_decoder:
        return "reads its image by cross-attention to an encoder"
    if image_token_id(model) is None:
        return "names no image placeholder in its configuration, so it is not known which tokens are the image's"
    generative: Any = type(model)
    library: Any = GenerationMixin
    own = unwrap(generative.generate)
    if own is not unwrap(library.generate) and "super" not in own.__code__.co_names:
        return "generates with a language model inside it, whose prompt has no placeholders"
    decoder = model.get_submodule(anatomy_of(model).block_list.rpartition(".")[0])
    if getattr(getattr(decoder, "config", None), "cross_attention_layers", None):
        return "reads its image by cross-attention"
    deep = [name for name in signature(decoder.forward).parameters if "deepstack" in name or "visual" in name]
    if deep:
        return f"adds image features after several of its blocks ({', '.join(deep)})"
    others = _other_layers(model)
    if others:
        return f"keeps a {', '.join(others)}: a sliding window, linear attention or the like"
    forms = block_forms(model)
    if forms.producers or forms.sources or any(form.token_axis != 1 for form in forms.forms):
        return "has blocks that hand on more than hidden states, for each token of the prompt"
    return None


def _other_layers(model: PreTrainedModel) -> list[str]:
    """Kinds of cache layers that do not grow with each token."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
