"""What two texts have to differ in to be different: none of case, white space, outer punctuation or Unicode spelling.

Combining marks are letters: a vowel sign makes another word. A fold that leaves nothing is not used, so that nothing is
equal to nothing: an answer of punctuation alone equals the same punctuation and nothing else, and an empty one nothing.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

_SPACES = re.compile(r"\s+")
# sentence punctuation of several scripts; signs that change a value, as %, $, + and -, are none
_OUTER = "".join(
    (
        " .,;:!?\"'`\u00a1\u00bf\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u2026\u00b7",
        "\u3002\u3001\uff01\uff1f\uff1b\uff1a\uff0c\uff0e\uff61\u300c\u300d\u300e\u300f",  # Chinese, Japanese
        "\u0964\u0965\u061f\u060c\u061b\u06d4\u0589\u055c\u055e\u1362",  # Indic, Arabic, Armenian, Ethiopic
    )
)


def plain(text: str) -> str:
    """Composed (NFC), without case, with single spaces."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip().casefold()


def without_outer(text: str) -> str:
    """``plain`` without punctuation around it; as it is where nothing else is there. ``.5`` keeps its point."""
    folded = plain(text)
    bare = folded.rstrip(_OUTER).lstrip(_OUTER)
    is_fraction = bare[:1].isdecimal() and folded.rstrip(_OUTER).endswith(f".{bare}")
    return f".{bare}" if is_fraction else bare or folded


def equals_one(answer: str, references: Sequence[str], fold: Callable[[str], str]) -> bool:
    """Whether a folded answer is a folded reference; an empty one never is."""
    folded = fold(answer)
    return bool(folded) and folded in {fold(reference) for reference in references}
