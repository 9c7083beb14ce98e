"""Why repeats do not count: reasons in words, and what counts where most have one. Knows no torch."""

import re

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"( for)? ?\b\d+(\.\d+)?( ms| MHz)?( of \d+ MHz)?")


def kind_of(reason: str) -> str:
    """A reason without its numbers, so that repeats disturbed in the same way are counted together."""
    return _NUMBER.sub("", reason).strip()


def that_count(calm: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those whose latency counts, of samples or executions: those that nothing disturbed.

    All of them on a machine that disturbs more than half: what it takes is what it takes there.

    Args:
        calm: which of them nothing disturbed, shape [n].

    Returns:
        Shape [n].
    """
    return calm if 2 * calm.sum() >= len(calm) else np.ones_like(calm)
