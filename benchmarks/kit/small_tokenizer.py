"""A tokenizer of a few words and a chat template, for real processors beside models with random weights."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AddedToken, PreTrainedTokenizerFast

WORDS = ("[UNK]", "[PAD]", "[EOS]", "[BOS]", *"abcdefghij", *(f"w{i}" for i in range(40)))


def small_tokenizer(named: dict[str, str], others: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of a few words.

    Args:
        named: special tokens that the processor reads as attributes of the tokenizer.
        others: special tokens that it only looks up.
    """
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - a property of the binding
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        eos_token="[EOS]",
        bos_token="[BOS]",
        extra_special_tokens=dict(named),
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in [*named.values(), *others]])
    return tokenizer


def template(picture: str) -> str:
    """A chat template that writes what stands for an image, and the text."""
    item = "{% if item['type'] == 'image' %}" + picture + "{% else %}{{ item['text'] }}{% endif %}"
    return (
        "{% for message in messages %}{% for item in message['content'] %}" + item + "{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} j{% endif %}"
    )
