"""Whether deadlines that could be kept are kept: the share of the latest ones, with an interval."""

from collections import deque
from math import nan, sqrt

from chronostat.records import DEADLINE_SHARE, Estimate

_LATEST = 200  # what was long ago says nothing of now
_LEAST = 20  # fewer say nothing: the very first one could be late
_SHOWN, _SURE = 1.96, 3.0  # deviations on each side: 95 % to be shown, more to act on, since it is looked at each time


class Promises:
    """Counted from one calibration to the next."""

    def __init__(self) -> None:
        self._kept: deque[bool] = deque(maxlen=_LATEST)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, *, kept: bool) -> None:
        """One request under a deadline that a setting was known to keep."""
        self._kept.append(kept)

    @property
    def share(self) -> Estimate:
        """Of those that were kept, with its 95 % interval."""
        return self._interval(_SHOWN)

    @property
    def broken(self) -> bool:
        """Whether fewer are kept than a deadline promises, beyond doubt."""
        return len(self) >= _LEAST and self._interval(_SURE).high < DEADLINE_SHARE

    def _interval(self, z: float) -> Estimate:
        """Wilson, JASA 22, 1927; ``z`` deviations on each side."""
        n = len(self)
        if not n:
            return Estimate(point=nan, low=nan, high=nan)
        point = sum(self._kept) / n
        middle = (point + z**2 / (2 * n)) / (1 + z**2 / n)
        around = z * sqrt(point * (1 - point) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        return Estimate(point=point, low=max(middle - around, 0.0), high=min(middle + around, 1.0))
