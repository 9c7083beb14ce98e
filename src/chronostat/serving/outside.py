"""What a caller waits beside what a controller counts: preprocessing where the metric leaves it out, knobs, hooks."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from chronostat.evidence.linear import Floats

_KEPT = 256  # of the latest requests
_MOST = 0.9  # share of them within what is forecast for a deadline


def sizes_of(images: Sequence[Image], tokens: Floats) -> Floats:
    """What it grows with: [N, 2] image and text tokens -> [N, 4], a constant and megapixels before them."""
    megapixels = sum(image.width * image.height for image in images) / 1e6
    return np.column_stack([np.ones(len(tokens)), np.full(len(tokens), megapixels), tokens])


class Outside:
    """A linear forecast from the latest requests; nothing of it is ever below 0."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Floats, float]] = deque(maxlen=_KEPT)
        self._weights = np.zeros(4)
        self._late_ms = 0.0

    def add(self, sizes: Floats, outside_ms: float) -> None:
        """Take one request.

        Args:
            sizes: a row of ``sizes_of``, shape [4].
            outside_ms: what it took.
        """
        self._seen.append((sizes, outside_ms))
        rows = np.stack([each for each, _ in self._seen])
        took_ms = np.array([each for _, each in self._seen])
        scale = np.maximum(rows.max(axis=0), 1e-9)
        self._weights = np.linalg.lstsq(rows / scale, took_ms, rcond=1e-6)[0] / scale
        self._late_ms = float(np.quantile(took_ms - rows @ self._weights, _MOST))

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
