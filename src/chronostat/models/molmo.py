"""The first Molmo generation (MolmoE-1B, Molmo-7B), whose own code was written for transformers 4.

Such a checkpoint is known by its interface: its class is registered for ``AutoModelForCausalLM`` and answers a batch
with ``generate_from_batch``. A subclass made when it is loaded repairs what transformers 5 has changed; the forward,
the weights and ``generate_from_batch`` stay the checkpoint's own.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

_AUTO_CLASS = "AutoModelForCausalLM"
_IMAGE_INPUTS = ("images", "image_masks", "image_input_idx")


def first_molmo_class(source: str, auto_map: object, revision: str | None = None) -> type[PreTrainedModel] | None:
    """The repaired class of such a checkpoint; None for any other. Runs the checkpoint's own code.

    Args:
        source: folder or hub name.
        auto_map: of its configuration.
        revision: branch, tag or commit of a hub model.
    """
    if not isinstance(auto_map, dict) or _AUTO_CLASS not in auto_map or "AutoModelForImageTextToText" in auto_map:
        return None
    kind: Any = get_class_from_dynamic_module(cast("dict[str, str]", auto_map)[_AUTO_CLASS], source, revision=revision)
    if not hasattr(kind, "generate_from_batch"):
        return None
    return type(kind.__name__, (_OnTransformers5, kind), {"config_class": kind.config_class})


class _OnTransformers5(PreTrainedModel, GenerationMixin):
    """Comes before the checkpoint's class, so that ``super()`` is that class.

    ``GenerationMixin`` comes after it, where its ``super().generate`` is looked up.
    """

    def __init__(self, config: Any, *others: Any, **named: Any) -> None:  # noqa: ANN401 - the checkpoint's own
        super().__init__(config, *others, **named)
        self.post_init()  # sets all_tied_weights_keys, which from_pretrained needs

    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the checkpoint: one that lacks some is refused."""

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """The checkpoint's own takes no arguments."""
        super().tie_weights()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Its cache is a list of one (keys, values) for each block, which it makes itself."""
        return False

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,  # noqa: ANN401 - any model output
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        """The library's: the checkpoint's reads ``cache_position``, which is gone."""
        return GenerationMixin._update_model_kwargs_for_generation(  # pyright: ignore[reportCallIssue]
            self, outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        past_key_values: Sequence[tuple[Tensor, Tensor]] | None = None,
        next_sequence_length: int | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,  # noqa: ANN401 - by this name generate() knows that the forward's arguments are allowed
    ) -> dict[str, Any]:
        """With a mask and positions for the whole sequence so far, and the images for the first step only."""
        mask = kwargs.get("attention_mask")  # generate_from_batch makes one that is longer than the sequence
        mask = torch.ones_like(input_ids) if mask is None else mask[:, : input_ids.shape[1]]
        kwargs["attention_mask"] = mask
        if getattr(self.config, "use_position_ids", False):
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions[:, -1:] if past_key_values else positions
        if past_key_values:
            kwargs.update(dict.fromkeys(_IMAGE_INPUTS))
        own: Any = super()
        return own.prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
