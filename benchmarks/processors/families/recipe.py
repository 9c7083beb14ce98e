"""How is a family made? A small tokenizer, the library's own processor, and a thin model of random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import transformers as hf
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from benchmarks.kit.small_tokenizer import small_tokenizer, template

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "initializer_range": 0.1,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A processor and a model that fit each other."""

    processor: ProcessorMixin
    model: PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of processor.

    Attributes:
        name: for people; what is not the class's default, in brackets.
        build: makes the pair; random weights, the same at each call.
        refused: the knob says no.
        only_more: the processor does not cut by itself, so the other values are above full.
        shape_free: the number of tokens does not depend on the image's shape.
    """

    name: str
    build: Callable[[], Pair]
    refused: bool = False
    only_more: bool = False
    shape_free: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a family's processor and model are made of; called, it makes them.

    Classes are names in the library and are looked up when they are made, so that one that is missing there stops no
    other family.

    Attributes:
        processor: its class.
        model: its class.
        image: makes the image processor.
        named: special tokens that the processor reads as attributes of the tokenizer.
        picture: what the chat template writes for an image.
        config: the model's configuration, from a function that gives the id of a token.
        options: what else the processor is made with.
        video: class of the video processor that it is made with, if any.
        hears: class of the feature extractor for sound, likewise.
        others: special tokens that it only looks up.
    """

    processor: str
    model: str
    image: Callable[[], Any]
    named: dict[str, str]
    picture: str
    config: Callable[[Callable[[str], int]], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    video: str | None = None
    hears: str | None = None
    others: Sequence[str] = ()

    def __call__(self) -> Pair:
        """Processor and model; random weights, the same at each call."""
        tokenizer = small_tokenizer(self.named, self.others)
        options = {**self.options, "chat_template": template(self.picture)}
        if self.video is not None:
            options["video_processor"] = getattr(hf, self.video)()
        if self.hears is not None:
            options["feature_extractor"] = getattr(hf, self.hears)()
        processor = getattr(hf, self.processor)(image_processor=self.image(), tokenizer=tokenizer, **options)
        return Pair(processor=processor, model=self._model(tokenizer))

    def _model(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        kind = getattr(hf, self.model)
        described = self.config(lambda token: cast("int", tokenizer.convert_tokens_to_ids(token)))
        described.setdefault("text_config", {})
        described["text_config"] = {**TEXT, "vocab_size": len(tokenizer) + 8, **described["text_config"]}
        described["text_config"] |= {"pad_token_id": 1, "bos_token_id": 3, "eos_token_id": None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(kind.config_class(**described)).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 1
        return model


def image_processor(name: str, **options: Any) -> Callable[[], Any]:  # noqa: ANN401 - the image processor's own
    """What makes an image processor, by the name of its class in the library."""
    return lambda: getattr(hf, name)(**options)
