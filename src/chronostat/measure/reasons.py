"""Reasons in words, counted by kind. Knows no torch."""

import re

_NUMBER = re.compile(r"( for)? ?\b\d+(\.\d+)?( ms| MHz)?( of \d+ MHz)?")


def kind_of(reason: str) -> str:
    """A reason without its numbers, so that repeats disturbed in the same way are counted together."""
    return _NUMBER.sub("", reason).strip()
