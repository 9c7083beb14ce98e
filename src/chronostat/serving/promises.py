"""Whether deadlines that could be kept are kept: the share of the latest ones, with an interval."""

from collections import deque
from dataclasses import asdict

from chronostat.compare.statistics import share_interval
from chronostat.records import DEADLINE_SHARE, Estimate, plain

_LATEST = 200  # what was long ago says nothing of now
_LEAST = 20  # fewer say nothing: the very first one could be late
_SURE = 3.0  # deviations on each side: more than to be shown, since it is looked at each time


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
        return share_interval(sum(self._kept), len(self))

    def said(self) -> dict[str, float | int | None]:
        """The share with its interval and the number of requests, as plain data."""
        return plain({**asdict(self.share), "requests": len(self)})

    @property
    def broken(self) -> bool:
        """Whether fewer are kept than a deadline promises, beyond doubt."""
        return len(self) >= _LEAST and share_interval(sum(self._kept), len(self), _SURE).high < DEADLINE_SHARE
