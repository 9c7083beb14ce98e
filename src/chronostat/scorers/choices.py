"""Scores of answers that choose: one of several options, yes or no. What is not clear is wrong, never guessed."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from string import ascii_lowercase

from chronostat.scorers.folding import plain, without_outer

_ALPHABET = frozenset(ascii_lowercase)
_END = r"(?=[)\].:,]|$| (?:or|and|are)\b)"  # what follows a letter that chooses; "a dog" begins with an article
_LETTER = re.compile(r"^[(\[]?([a-z])(?:[)\].:,]|$)(?!\w)")  # "b", "(b)", "b.", "b: a dog"
_SAID = re.compile(rf"\b(?:answer|option|choice|choose|pick)(?: is|:)?:? [(\[]?([a-z]){_END}")  # "the answer is (b)."
_BESIDE = re.compile(rf"(?:\b(?:or|and|nor|not|maybe|perhaps|possibly) |[,/&] ?)[(\[]?([a-z]){_END}")  # "b or c"
_CLAUSE = re.compile(r"[.,;:!?]|\bbecause\b")
_NOT = re.compile(r"\b(?:no|not|never|neither|nor|cannot|wrong|incorrect|except)\b|n['\u2019]t\b")


def choice(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 if the answer names the right option by its letter or its text, and no other one, else 0.

    A letter that is also the text of an option is a letter. An answer that denies what it names, in a clause with "not"
    or its like, is wrong.

    Args:
        answer: the model's.
        references: the right option, as a letter or as its text.
        options: all options in the order of their letters; without them an answer is right by the letter or the text of
            a reference, and cannot name a wrong option by its text.
    """
    letters = [letter_of(place).lower() for place in range(len(options))] or _ALPHABET
    folded = [without_outer(reference) for reference in references]
    named = dict(zip(map(without_outer, options), letters, strict=True)) if options else {r: r for r in folded if r}
    wanted = {reference if reference in letters else named.get(reference, reference) for reference in folded}
    said = _chosen(answer, named, letters)
    return float(said is not None and said in wanted)


def yes_no(answer: str, references: Sequence[str]) -> float:
    """1 if the answer begins with yes or no, as the references do, and does not say the other one too; else 0."""
    said = _yes_or_no(answer)
    return float(said is not None and said in {_yes_or_no(reference) for reference in references})


def letter_of(position: int) -> str:
    """The letter of an option: A is the first."""
    return chr(ord("A") + position)


def _chosen(answer: str, named: Mapping[str, str], letters: Collection[str]) -> str | None:
    """What an answer chooses.

    Args:
        answer: the model's.
        named: what is chosen, by the text of an option.
        letters: of the options.

    Returns:
        A letter, or a value of ``named``; None: nothing, more than one, or what it denies.
    """
    whole = without_outer(answer)
    if whole in letters:
        return whole
    if whole in named:
        return named[whole]
    rest, texts = _texts(plain(answer), named)
    found = [*_letters(rest), *texts]
    said = {name for name, _, _ in found}
    denied = any(_is_denied(rest, start, end) for _, start, end in found)
    return said.pop() if len(said) == 1 and not denied else None


def _texts(text: str, named: Mapping[str, str]) -> tuple[str, list[tuple[str, int, int]]]:
    """The text with what stands in it of options blanked, and whose texts those are with start and end.

    The longest are found first: "a black cat" is no "cat". A text of one letter is not looked for: "a" is an article.
    """
    found: list[tuple[str, int, int]] = []
    for option in sorted(named, key=len, reverse=True):
        if not option or option in _ALPHABET:
            continue
        pattern = re.compile(rf"(?<!\w){re.escape(option)}(?!\w)")
        found += [(named[option], *match.span()) for match in pattern.finditer(text)]
        text = pattern.sub(lambda match: "\0" * len(match[0]), text)
    return text, found


def _letters(text: str) -> Iterator[tuple[str, int, int]]:
    """The letters that a text names, with start and end; those beside one that is surely meant are meant too."""
    led = _LETTER.match(text)
    sure = [led] if led else list(_SAID.finditer(text))
    for match in (*sure, *(_BESIDE.finditer(text) if sure else ())):
        yield match[1], *match.span(1)


def _is_denied(text: str, start: int, end: int) -> bool:
    """Whether what stands there is in a clause with "not", as in "it is not a cat"."""
    return _NOT.search(f"{_CLAUSE.split(text[:start])[-1]} {_CLAUSE.split(text[end:])[0]}") is not None


def _yes_or_no(text: str) -> str | None:
    words = re.findall(r"\w+", plain(text))
    said = {word for word in words if word in {"yes", "no"}}
    return words[0] if words and words[0] in said and len(said) == 1 else None
