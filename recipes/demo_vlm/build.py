"""The untrained model and its processor: an ordinary InternVL with a Qwen3-MoE text model, only small."""

import re
from functools import cache

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from chronostat.data.demo.questions import KINDS
from chronostat.data.demo.scenes import BACKGROUNDS, COLOURS, SHAPE_RADII_PX, SHAPES

TILE_PX = 32
TOKENS_PER_TILE = 16
FULL_TILES = 16
BLOCKS = 8

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"
IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_WORD = "\N{LOWER ONE EIGHTH BLOCK}"  # marks the start of a word, so that digits without it are written together

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<IMG_CONTEXT>{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, digits as they are answered, then every word of the wordings and the answers."""
    wordings = " ".join(wording for kind in KINDS.values() for wording in kind.wordings)
    fillers = {*COLOURS, *SHAPES, *BACKGROUNDS, *SHAPE_RADII_PX, "same"}
    words = sorted(fillers | set(re.findall(r"[a-z]+", re.sub(r"{\w+}", "", wordings.lower()))))
    specials = [PAD, UNKNOWN, USER, ASSISTANT, END, *IMAGE_TOKENS.values()]
    return [*specials, *"0123456789", *(_WORD + word for word in words)]


@cache
def build_processor() -> InternVLProcessor:
    """Tokenizer, image processor and chat template."""
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE_PX, "width": TILE_PX},
        crop_to_patches=True,
        min_patches=1,
        max_patches=FULL_TILES,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=_build_tokenizer(),
        video_processor=InternVLVideoProcessor(size={"height": TILE_PX, "width": TILE_PX}),
        image_seq_length=TOKENS_PER_TILE,
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer() -> PreTrainedTokenizerFast:
    ids = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_WORD, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(_WORD, prepend_scheme="always")
    specials = [token for token in ids if token.startswith("<")]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=IMAGE_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )


def build_model() -> InternVLForConditionalGeneration:
    """A model of random weights in float32; draws from torch's global generator."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    config = InternVLConfig(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "image_size": TILE_PX,
            "patch_size": 4,
            "layer_scale_init_value": 1.0,
        },
        text_config=Qwen3MoeConfig(
            vocab_size=len(ids),
            hidden_size=192,
            num_hidden_layers=BLOCKS,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=384,
            moe_intermediate_size=96,
            num_experts=8,
            num_experts_per_tok=4,
            norm_topk_prob=True,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            pad_token_id=ids[PAD],
            bos_token_id=None,
            eos_token_id=ids[END],
        ),
        image_token_id=ids[IMAGE_TOKENS["context_image_token"]],
        image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        bos_token_id=None,
        eos_token_id=ids[END],
    )
    model = InternVLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=ids[END], pad_token_id=ids[PAD], do_sample=False, max_new_tokens=8
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: InternVLForConditionalGeneration) -> None:
    """Starts the residual branches small, so that eight blocks train at once without a long warm-up."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            weight.normal_(std=0.05)
        if name.endswith(("o_proj.weight", "down_proj")):
            weight.mul_(0.25)
        if name.endswith(("projection_layer.weight", "fc2.weight")):
            weight.mul_(0.35)
