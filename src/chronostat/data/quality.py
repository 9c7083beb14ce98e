"""How good an answer is, in [0, 1]: the scorers by name."""

import importlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, cast

from chronostat.data.samples import Sample
from chronostat.errors import ConfigError
from chronostat.scorers.choices import choice, yes_no
from chronostat.scorers.numbers import number, relaxed
from chronostat.scorers.texts import anls, contains, exact, f1
from chronostat.scorers.vqa import vqa

__all__ = ["QUALITIES", "Quality", "exact", "quality_by_name", "score", "vqa"]

Quality = Callable[[str, Sequence[str]], float]
QUALITIES: dict[str, Quality] = {
    "exact": exact,
    "vqa": vqa,
    "anls": anls,
    "relaxed": relaxed,
    "choice": choice,
    "yes_no": yes_no,
    "number": number,
    "contains": contains,
    "f1": f1,
}


def quality_by_name(name: str) -> Quality:
    """One of ``QUALITIES``, or a function of one's own as ``package.module:function``.

    Raises:
        ConfigError: unknown; lists the known names. The module cannot be imported, or has no such function.
    """
    if ":" in name:
        return _imported(name)
    if name not in QUALITIES:
        raise ConfigError(
            f"unknown quality {name!r}; known: {', '.join(QUALITIES)}, or one of your own as package.module:function"
        )
    return QUALITIES[name]


def score(quality: Quality, answer: str, sample: Sample) -> float:
    """The quality of an answer to a sample: what chooses is told the options too.

    Raises:
        ConfigError: a quality of one's own gave something else than a number in [0, 1].
    """
    if quality is choice:
        return choice(answer, sample.references, sample.options)
    value = quality(answer, sample.references)
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise ConfigError(f"the quality of {answer!r} is {value!r}; a quality is a number from 0 to 1")
    return float(value)


def _imported(name: str) -> Quality:
    module_name, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"data.quality = {name!r} cannot be imported ({error}); name a function that takes an answer and its "
            "references as package.module:function"
        ) from None
    if not callable(found):
        raise ConfigError(f"data.quality = {name!r} is no function; it takes an answer and its references")
    return cast("Quality", found)
