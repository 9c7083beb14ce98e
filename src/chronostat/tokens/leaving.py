"""Image tokens that leave the decoder between two of its blocks: later blocks neither compute nor keep them.

Hidden states, masks and positions are cut at the entry of each later block. A kept token has its own position, and
later tokens go on as if nothing had left, since their positions are counted from the first block.
"""

import inspect
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from chronostat.errors import KnobError
from chronostat.models.anatomy import anatomy_of
from chronostat.models.prepare import image_places
from chronostat.tokens.listening import Heard, heard_attention

_TOKEN_AXIS = {"position_ids": -1, "cache_position": 0}


@dataclass(kw_only=True)
class _Prompt:
    """The prompt of one request.

    Attributes:
        tokens: how many.
        text: places of its text, ascending; those of images are in ``images``.
        columns: the places that stay, ascending, once the first block is reached that runs without the others.
    """

    tokens: int
    text: Tensor
    images: Tensor
    columns: Tensor | None = None


class Leaving:
    """Takes image tokens out of the decoder of a model in every ``generate()``.

    Args:
        model: with decoder blocks that hand on nothing but hidden states.
        after: how many blocks run with all tokens.
        share: of the image tokens that stays: those that the last token of the prompt attends to most in the last of
            these blocks, mean over heads (Chen et al. 2024, FastV, arXiv:2403.06764, by their published code; their
            text takes the mean over all tokens); 0: none stays (Lin et al. 2024, arXiv:2405.05803).
    """

    def __init__(self, model: PreTrainedModel, after: int, share: float) -> None:
        self._model = model
        self._after = after
        self._share = share
        self._hooks = ExitStack()
        self._listening = ExitStack()
        self._heard = Heard()
        self._prompt: _Prompt | None = None

    @contextmanager
    def installed(self) -> Generator[None]:
        """On the model, for the length of the ``with``."""
        with ExitStack() as undo:
            undo.callback(self._forget)
            undo.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            yield

    def _forget(self) -> None:
        self._hooks.close()
        self._listening.close()
        self._prompt = None

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the entry of a forward of the model: where the image tokens of a new prompt are."""
        ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        earlier = 0 if cache is None else int(cache.get_seq_length())
        if not isinstance(ids, Tensor):
            raise KnobError(
                "drop_after: the prompt is inputs_embeds, of which it is not known which are of images; pass input_ids"
            )
        if earlier and ids.shape[1] == 1:
            return  # a decode step
        if earlier and self._prompt is not None:
            raise KnobError(
                f"drop_after: a forward of {ids.shape[1]} tokens after the first one, whose image tokens have left; "
                "leave prefill_chunk_size and assistants out"
            )
        self._forget()
        places = image_places(self._model, {"input_ids": ids, **kwargs})
        images = None if places is None else places[0].nonzero()[:, 0]  # here: later the host would wait for the device
        if places is None or images is None or not len(images):
            return
        if len(places) != 1:
            raise KnobError(f"drop_after: a batch of {len(places)} requests; pass one, input_ids of shape [1, T]")
        if earlier:
            raise KnobError(f"drop_after: past_key_values holds {earlier} tokens of an earlier call; leave it out")
        self._prompt = _Prompt(tokens=ids.shape[1], text=(~places[0]).nonzero()[:, 0], images=images)
        self._install()

    def _install(self) -> None:
        """Hooks for one request."""
        blocks = self._blocks()
        if self._share:
            self._heard = Heard()
            self._listening.enter_context(heard_attention(blocks[self._after - 1], self._heard))
        for index, block in enumerate(blocks):
            if index >= self._after:
                hook = block.register_forward_pre_hook(partial(self._enter, index == self._after), with_kwargs=True)
                self._hooks.callback(hook.remove)

    def _blocks(self) -> nn.ModuleList:
        """The decoder blocks, those among them that stand in for skipped ones."""
        blocks = self._model.get_submodule(anatomy_of(self._model).block_list)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _enter(
        self, first: bool, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a block that runs without the image tokens is called with."""
        prompt = self._prompt
        assert prompt is not None, "hooks are set where there are image tokens"
        named = dict(zip(inspect.signature(block.forward).parameters, args, strict=False)) | kwargs
        states = next(iter(named))
        hidden = named.pop(states)
        if prompt.columns is None:
            self._require_plain(named, hidden, prompt.tokens)
            self._listening.close()
            prompt.columns = self._staying(prompt)
        columns = prompt.columns
        if first and hidden.shape[1] > 1:
            hidden = hidden[:, columns]
        rest = {name: _cut(name, value, prompt.tokens, columns, block) for name, value in named.items()}
        return (), {states: hidden} | rest

    def _staying(self, prompt: _Prompt) -> Tensor:
        """The places of the prompt that stay, ascending."""
        if not self._share:
            return prompt.text
        self._heard.require(self._blocks()[self._after - 1])
        count = max(1, ceil(self._share * len(prompt.images) - 0.5))
        attended = self._heard.from_last()[prompt.images]
        return torch.cat([prompt.text, prompt.images[attended.topk(count).indices]]).sort().values

    def _require_plain(self, named: dict[str, Any], hidden: Tensor, prompt: int) -> None:
        """Accept the whole prompt, and a cache that grows layer by layer.

        Raises:
            KnobError: it is another one.
        """
        if hidden.ndim != 3 or hidden.shape[1] != prompt:
            raise KnobError(
                f"drop_after: hidden states of shape {list(hidden.shape)} for a prompt of {prompt} tokens, of which it "
                "is not known which are the image's; leave drop_after out"
            )
        cache = named.get("past_key_values")
        kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ()) if type(layer) is not DynamicLayer}
        if type(cache) is not DynamicCache or kinds:
            found = ", ".join(sorted(kinds)) or type(cache).__name__
            raise KnobError(
                f"drop_after: a cache of {found}, whose layers do not each keep a number of tokens of their own; it "
                "takes the DynamicCache that generate() makes by itself"
            )


def _cut(name: str, value: Any, prompt: int, columns: Tensor, block: nn.Module) -> Any:  # noqa: ANN401 - any argument
    """One argument of a block without the tokens that left.

    Raises:
        KnobError: it is not known what it has for which token.
    """
    if isinstance(value, tuple) and name.startswith("position_embeddings"):
        return tuple(each[..., columns, :] if each.shape[-2] == prompt else each for each in value)
    if not isinstance(value, Tensor):
        return value
    if name == "attention_mask" and value.ndim in {2, 4}:
        later = torch.arange(prompt, value.shape[-1], device=value.device)
        value = value[..., torch.cat([columns, later])]
        return value[..., columns, :] if value.ndim == 4 and value.shape[-2] == prompt else value
    if prompt not in value.shape:
        return value
    labels = value.shape == (1, prompt) and not value.is_floating_point()
    axis = -1 if labels else _TOKEN_AXIS.get(name)
    if axis is not None and value.shape[axis] == prompt:
        return value.index_select(axis, columns)
    raise KnobError(
        f"drop_after: {type(block).__name__} is given {name} of shape {list(value.shape)}, of which it is not known "
        "which part belongs to which token; leave drop_after out"
    )
