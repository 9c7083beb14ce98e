"""Scores that compare texts: equal, contained, near, or sharing words."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from chronostat.scorers.folding import equals_one, plain, without_outer

_ANLS_THRESHOLD = 0.5
_ARTICLES = frozenset({"a", "an", "the"})
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"\S+")


def exact(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference after folding case, outer punctuation and white space, else 0."""
    return float(equals_one(answer, references, without_outer))


def contains(answer: str, references: Sequence[str]) -> float:
    """1 if a reference stands somewhere in the answer, case and white space folded, else 0 (as OCRBench is scored)."""
    said = plain(answer)
    return float(any(plain(reference) in said for reference in references if reference.strip()))


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity (Biten et al. 2019): 1 - edits / length of the longer text.

    The best over the references; 0 where that is 0.5 or less.
    """
    said = plain(answer)
    best = max((_similarity(said, plain(reference)) for reference in references), default=0.0)
    return best if said and best > _ANLS_THRESHOLD else 0.0


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words (Rajpurkar et al. 2016), the best over the references.

    Case, ASCII punctuation and English articles are folded.
    """
    said = _words(answer)
    return max((_f1(said, _words(reference)) for reference in references), default=0.0)


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1 - _edits(one, other) / longest if longest else 0.0


def _edits(one: str, other: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, row by row."""
    row = list(range(len(other) + 1))
    for i, char in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char != wanted))
    return row[-1]


def _words(text: str) -> Counter[str]:
    words = _WORD.findall(plain(text).translate(_ASCII_PUNCTUATION))
    kept = [word for word in words if word not in _ARTICLES]
    return Counter(kept or words or _WORD.findall(plain(text)))


def _f1(said: Counter[str], wanted: Counter[str]) -> float:
    shared = (said & wanted).total()
    if not shared:
        return 0.0
    precision, recall = shared / said.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)
