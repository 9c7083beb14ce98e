"""Scores of answers that choose: one of several options, yes or no. What is not clear is wrong, never guessed."""

import re
from collections.abc import Mapping, Sequence

from chronostat.scorers.folding import plain, without_outer

_LETTER = re.compile(r"^[(\[]?([a-z])(?:[)\].:,]|$)(?!\w)")  # "b", "(b)", "b.", "b: a dog"
# "the answer is (b)."; "the answer is a dog" names no letter
_SAID = re.compile(r"\b(?:answer|option|choice|choose|pick)(?: is|:)?:? [(\[]?([a-z])(?:[)\].:,]| or\b| and\b|$)")


def choice(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 if the answer names the right option by its letter or its text, else 0.

    Args:
        answer: the model's.
        references: the right option, as a letter or as its text.
        options: all options in the order of their letters; without them an answer is right by the letter or the text of
            a reference, and cannot name a wrong option by its text.
    """
    named = {without_outer(option): letter_of(place).lower() for place, option in enumerate(options)}
    folded = [without_outer(reference) for reference in references]
    wanted = {named.get(reference, reference) for reference in folded}
    said = _chosen(answer, named or {reference: reference for reference in folded if reference})
    return float(said is not None and said in wanted)


def yes_no(answer: str, references: Sequence[str]) -> float:
    """1 if the answer begins with yes or no, as the references do, and does not say the other one too; else 0."""
    said = _yes_or_no(answer)
    return float(said is not None and said in {_yes_or_no(reference) for reference in references})


def letter_of(position: int) -> str:
    """The letter of an option: A is the first."""
    return chr(ord("A") + position)


def _chosen(answer: str, names: Mapping[str, str]) -> str | None:
    """What an answer chooses, of names by the text of their options; None: nothing, or more than one."""
    whole = without_outer(answer)
    if whole in names:
        return names[whole]
    led = _LETTER.match(plain(answer))
    letters = {led[1]} if led else set(_SAID.findall(plain(answer)))
    if letters:
        return letters.pop() if len(letters) == 1 else None
    held = {text for text in names if len(text) > 1 and _holds(whole, text)}  # "a" is an article
    held -= {text for text in held for longer in held if text != longer and _holds(longer, text)}
    return names[held.pop()] if len(held) == 1 else None


def _holds(text: str, part: str) -> bool:
    """Whether a text stands in another as whole words."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def _yes_or_no(text: str) -> str | None:
    words = re.findall(r"\w+", plain(text))
    said = {word for word in words if word in {"yes", "no"}}
    return words[0] if words and words[0] in said and len(said) == 1 else None
