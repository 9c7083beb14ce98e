"""What a caller waits beside what a controller counts: preprocessing where the metric leaves it out, knobs, hooks."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from PIL.Image import Image

from chronostat.evidence.linear import Floats

_KEPT = 256  # of the latest requests
_MOST = 0.9  # share of them within what is forecast for a deadline
_RIDGE = 1e-10  # of the squares of each size: where requests are alike, all sizes share what they take
_LEAST = 1e-20  # for what no request has, such as pictures: it has no weight


def sizes_of(images: Sequence[Image], tokens: Floats) -> Floats:
    """What it grows with: [N, 2] image and text tokens -> [N, 4], a constant and megapixels before them."""
    megapixels = sum(image.width * image.height for image in images) / 1e6
    return np.column_stack([np.ones(len(tokens)), np.full(len(tokens), megapixels), tokens])


class Outside:
    """A linear forecast from the latest requests; nothing of it is ever below 0.

    It is found anew from them with each request, by normal equations: cheap, and nothing adds up over the days.
    """

    def __init__(self) -> None:
        self._sizes, self._took_ms = np.zeros((_KEPT, 4)), np.zeros(_KEPT)
        self._count = 0
        self._weights = np.zeros(4)
        self._late_ms = 0.0

    def add(self, sizes: Floats, outside_ms: float) -> None:
        """Take one request.

        Args:
            sizes: a row of ``sizes_of``, shape [4].
            outside_ms: what it took.
        """
        place = self._count % _KEPT  # that of the oldest one, once there are so many
        self._sizes[place], self._took_ms[place] = sizes, outside_ms
        self._count += 1
        known = min(self._count, _KEPT)
        rows, took_ms = self._sizes[:known], self._took_ms[:known]
        gram = rows.T @ rows
        gram.flat[::5] += _RIDGE * gram.diagonal() + _LEAST
        self._weights = np.linalg.solve(gram, took_ms @ rows)
        within = ceil(_MOST * known) - 1
        self._late_ms = float(np.partition(took_ms - rows @ self._weights, within)[within])

    @property
    def least_ms(self) -> float:
        """What every request takes, whatever its size."""
        return max(float(self._weights[0]), 0.0)

    def typical_ms(self, sizes: Floats) -> Floats:
        """Of requests of these sizes: [N, 4] -> [N]."""
        return np.maximum(sizes @ self._weights, 0.0)

    def most_ms(self, sizes: Floats) -> Floats:
        """What nine of ten are within: [N, 4] -> [N]."""
        return np.maximum(sizes @ self._weights + self._late_ms, 0.0)
