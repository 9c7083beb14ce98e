"""Scores that compare numbers, read from an answer in whatever way they are written."""

import re
import unicodedata
from collections.abc import Sequence
from math import isclose

from chronostat.scorers.folding import equals_one, without_outer

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?")
_TOLERANCE = 0.05


def number(answer: str, references: Sequence[str]) -> float:
    """1 if the answer holds one number, and it equals that of a reference, else 0.

    Digits of any script, thousands separated by commas, percent and the words zero to twelve are read. An answer that
    holds two different numbers is not right by one of them.
    """
    said = _numbers(answer)
    wanted = {value for reference in references for value in _numbers(reference)}
    return float(len(said) == 1 and any(isclose(value, said[0], rel_tol=1e-9) for value in wanted))


def relaxed(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is a number within 5 % of a reference, or equals it where one of the two is none, else 0.

    Relaxed accuracy (Methani et al. 2020; Masry et al. 2022). A percentage is a hundredth of its number.
    """
    said = _as_number(answer)
    for reference in references:
        wanted = _as_number(reference)
        if said is None or wanted is None:
            if equals_one(answer, [reference], without_outer):
                return 1.0
        elif said == wanted or abs(said - wanted) <= _TOLERANCE * abs(wanted):  # two infinite ones are equal
            return 1.0
    return 0.0


def _numbers(text: str) -> list[float]:
    """The different numbers that stand in a text."""
    folded = _with_ascii_digits(text).casefold()
    found = [_value(match) for match in _NUMBER.findall(folded)]
    words = re.findall(r"\w+", folded)
    found += [float(_WORDS.index(word)) for word in words if word in _WORDS]
    return list(dict.fromkeys(found))


def _as_number(text: str) -> float | None:
    """What a text is as a whole; None: no number."""
    bare = without_outer(_with_ascii_digits(text))
    percent = bare.endswith("%")
    bare = bare.removesuffix("%").strip()
    if not _NUMBER.fullmatch(bare):
        return None
    return _value(bare) / 100 if percent else _value(bare)


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))


def _with_ascii_digits(text: str) -> str:
    normal = unicodedata.normalize("NFC", text)
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in normal)
