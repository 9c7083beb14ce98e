"""One ``generate()`` with images: where its image tokens stand, and what is left of the call without some of them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chronostat.errors import KnobError
from chronostat.measure.arguments import main_input_of
from chronostat.models.prepare import image_places
from chronostat.tokens.grid import Size, grid_of
from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, Selection, all_of, shares


@dataclass(kw_only=True)
class Request:
    """One call of ``generate()`` of T tokens, of which N are placeholders of images.

    Attributes:
        call: its arguments by name.
        places: where the placeholders are, shape [N].
        others: all other places of the prompt, shape [T - N].
        count: how many image tokens are kept.
        method: chooses them.
        columns: the places of the prompt that are left, ascending, once they are known.
        output: what the model is handed in the place of its image features, once that is known.
        handed: the model has taken it.
    """

    call: Mapping[str, Any]
    places: Tensor
    others: Tensor
    count: int
    method: Method
    columns: Tensor | None = None
    output: Any = None
    handed: bool = False

    @property
    def left_out(self) -> int:
        """How many tokens leave the prompt."""
        return len(self.places) - self.count

    def keep(self, kept: Tensor) -> None:
        """Settle which of the N are kept; shape [count]."""
        self.columns = torch.cat([self.others, self.places[kept]]).sort().values

    @cached_property
    def rows(self) -> list[int]:
        """How many placeholders stand side by side, for each row of them; the host waits for the device once."""
        places = self.places.tolist()
        starts = [index for index, place in enumerate(places) if not index or place != places[index - 1] + 1]
        return [after - before for before, after in pairwise([*starts, len(places)])]

    def keep_firsts(self) -> None:
        """Settle that of each row of placeholders the first ones are kept, in proportion to its length."""
        rows = self.rows
        firsts = [Selection(tokens=torch.arange(n, device=self.places.device)) for n in shares(rows, self.count)]
        self.keep(joined(firsts, rows))

    def shortened(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """The call with the places that are left of everything that has one entry for each token of the prompt.

        Args:
            encoded: arguments that are read when images are encoded, and stay as they are.
        """
        assert self.columns is not None, "it is settled what is kept"
        shape = self.call["input_ids"].shape
        return {
            name: value[:, self.columns]
            if name not in encoded and isinstance(value, Tensor) and value.shape[:2] == shape
            else value
            for name, value in self.call.items()
        }

    def choose(self, pictures: Sequence[Tensor], sizes: Sequence[Sequence[Size]]) -> list[Selection]:
        """What is kept of each picture.

        Args:
            pictures: their features, shape [n, d] each.
            sizes: tables of heights and widths; the first with one row for each picture counts.
        """
        fitting = next((table for table in sizes if len(table) == len(pictures)), [None] * len(pictures))
        counts = shares([len(features) for features in pictures], self.count)
        return [
            self._of_picture(
                Picture(index=index, together=len(pictures), features=features, grid=grid_of(len(features), size)),
                count,
            )
            for index, (features, size, count) in enumerate(zip(pictures, fitting, counts, strict=True))
        ]

    def _of_picture(self, picture: Picture, count: int) -> Selection:
        size, device = len(picture.features), picture.features.device
        if count == size:
            return all_of(size, device)
        return self.method.choose(picture, count) if count else all_of(0, device)


def joined(selections: Sequence[Selection], sizes: Sequence[int]) -> Tensor:
    """The kept tokens of all pictures as positions among all of their tokens, in order; of ``sizes`` tokens each."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return torch.cat([start + chosen.tokens for start, chosen in zip(starts, selections, strict=True)])


def request_of(
    model: PreTrainedModel, call: Mapping[str, Any], method: type[Method], count: Callable[[int], int]
) -> Request | None:
    """The request that a call is; None where nothing of it is left out.

    Raises:
        KnobError: it is more than one request, goes on from an earlier one, or is not written in ids.
    """
    if call.get("input_ids") is None and call.get("inputs_embeds") is not None:
        raise KnobError(
            "image_keep: the prompt is inputs_embeds, of which it is not known which are of images; pass input_ids"
        )
    found = image_places(model, call)
    if found is None or not found.any():
        return None
    if len(found) != 1:
        raise KnobError(f"image_keep: a batch of {len(found)} requests; pass one, input_ids of shape [1, T]")
    places, others = found[0].nonzero()[:, 0], (~found[0]).nonzero()[:, 0]
    kept = count(len(places))
    if kept == len(places):
        return None
    cache = call.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise KnobError("image_keep: past_key_values holds tokens of an earlier call; leave it out")
    text = call["input_ids"][0, others]
    return Request(call=call, places=places, others=others, count=kept, method=method(model, text))


def by_name(
    model: PreTrainedModel, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of ``generate()``, each under its own name.

    Raises:
        KnobError: some of them have no name.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise KnobError("image_keep: pass the request to generate() by name, as generate(**batch)")
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    main = named.pop("inputs", None)
    return named if main is None else {main_input_of(model): main, **named}
