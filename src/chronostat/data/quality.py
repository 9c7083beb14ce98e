"""How good an answer is, in [0, 1]."""

import re
from collections.abc import Callable, Sequence

from chronostat.errors import ConfigError

Quality = Callable[[str, Sequence[str]], float]

_SPACES = re.compile(r"\s+")
_PUNCTUATION = re.compile(r"[^\w\s]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference after folding case, outer punctuation and white space, else 0."""
    return float(_folded(answer) in {_folded(reference) for reference in references})


def vqa(answer: str, references: Sequence[str]) -> float:
    """Leave-one-out VQA accuracy (Antol et al. 2015; the evaluation of VQA v2).

    For each of the n reference answers, the other n - 1 are compared with the answer and give min(matches / 3, 1); the
    score is the mean. With ten references 0, 1, 2, 3 and 4 or more matches give 0, 0.3, 0.6, 0.9 and 1. A single
    reference has no others, so it is compared itself.
    """
    matches = [_plain(answer) == _plain(reference) for reference in references]
    if len(matches) == 1:
        return float(matches[0])
    others = (sum(matches) - match for match in matches)
    return sum(min(count / 3, 1.0) for count in others) / len(matches)


QUALITIES: dict[str, Quality] = {"exact": exact, "vqa": vqa}


def quality_by_name(name: str) -> Quality:
    """One of ``QUALITIES``.

    Raises:
        ConfigError: unknown; lists the known names.
    """
    if name not in QUALITIES:
        raise ConfigError(f"unknown quality {name!r}; known: {', '.join(QUALITIES)}")
    return QUALITIES[name]


def _folded(text: str) -> str:
    return _SPACES.sub(" ", text).strip(" .,;:!?\"'").casefold()


def _plain(text: str) -> str:
    words = _SPACES.sub(" ", _PUNCTUATION.sub(" ", text.casefold())).strip()
    return _SPACES.sub(" ", _ARTICLES.sub(" ", words)).strip() or words  # "a" may be the answer to "which letter?"
