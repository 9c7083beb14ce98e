"""A small Qwen2.5-VL with random weights and the real processor, and requests for it, for latency alone.

Image tokens follow the pictures' areas, so that ``full`` differs by far between requests. Answers mean nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from benchmarks.kit.small_tokenizer import small_tokenizer, template
from chronostat.data.samples import DrawnSamples, Sample, Split

_TOKEN_PX = 28  # 14 px a patch, 2 x 2 patches a token
_TOKENS = (4, 640)  # of one picture, fewest and most
_SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_TEXT = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 1,
}
_VISION = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_heads": 2,
    "window_size": 112,
    "fullatt_block_indexes": [3],
    "out_hidden_size": 256,
}


@dataclass(frozen=True, kw_only=True)
class QwenLike:
    """Model and processor."""

    model: PreTrainedModel
    processor: ProcessorMixin


def qwen_like() -> QwenLike:
    """The model in float32 on the CPU, and its processor; random weights, the same at each call."""
    hf: Any = transformers  # classes by name: this version may not have them
    image, video, start, end = _SPECIAL
    tokenizer = small_tokenizer({"image_token": image, "video_token": video}, (start, end))
    fewest, most = (count * _TOKEN_PX**2 for count in _TOKENS)
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(min_pixels=fewest, max_pixels=most),
        video_processor=hf.Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=template(f"{start}{image}{end}"),
    )
    ids = [cast("int", tokenizer.convert_tokens_to_ids(token)) for token in _SPECIAL]
    named = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = hf.Qwen2_5_VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer) + 8},
        vision_config=_VISION,
        **dict(zip(named, ids, strict=True)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.Qwen2_5_VLForConditionalGeneration(config).eval()
    model.generation_config.update(eos_token_id=None, pad_token_id=1, do_sample=False)
    return QwenLike(model=model, processor=processor)


class QwenLikeTask:
    """One to four pictures of noise and a prompt of a few words; each sample follows from the split and its index.

    Pictures have about 5 to 640 image tokens under full and are up to four times as wide as high, or the reverse. There
    are no reference answers.
    """

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split, drawn when they are looked at."""
        return _Drawn(name)


@dataclass(frozen=True)
class _Drawn(DrawnSamples):
    name: Split

    def __len__(self) -> int:
        return 1_000

    def draw(self, position: int) -> Sample:
        """See ``DrawnSamples``."""
        rng = self._rng(position)
        _shapes(rng)
        words = rng.integers(10, size=int(rng.integers(4, 40)))
        return Sample(
            id=f"qwen-like-{self.name}-{position:06d}",
            split=self.name,
            prompt=" ".join("abcdefghij"[word] for word in words),
            references=(),
            load_images=partial(self._load_images, position),
        )

    def _rng(self, position: int) -> np.random.Generator:
        return np.random.default_rng([("train", "validation", "test").index(self.name), position])

    def _load_images(self, position: int) -> tuple[Image.Image, ...]:
        rng = self._rng(position)
        shapes = _shapes(rng)
        return tuple(
            Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)) for width, height in shapes
        )


def _shapes(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Width and height in pixels of each picture of a request."""
    pictures = int(rng.integers(1, 5))
    sides = _TOKEN_PX * np.sqrt(np.exp(rng.uniform(np.log(5), np.log(640), size=pictures)))
    stretch = np.exp(rng.uniform(-np.log(2), np.log(2), size=pictures))  # of each side
    return [(round(side * by), round(side / by)) for side, by in zip(sides.tolist(), stretch.tolist(), strict=True)]
