"""Whether deadlines that could be kept are kept: their share since the last calibration, with an interval."""

from math import nan, sqrt

from chronostat.records import DEADLINE_SHARE, Estimate

_SURE = 1.96  # deviations on each side of a 95 % interval


class Promises:
    """Counted from one calibration to the next."""

    def __init__(self) -> None:
        self.made = self.kept = 0

    def add(self, *, kept: bool) -> None:
        """One request under a deadline that a setting was known to keep."""
        self.made += 1
        self.kept += kept

    @property
    def share(self) -> Estimate:
        """Of those that were kept, with its 95 % interval (Wilson, JASA 22, 1927)."""
        if not self.made:
            return Estimate(point=nan, low=nan, high=nan)
        n, point, z = self.made, self.kept / self.made, _SURE
        middle = (point + z**2 / (2 * n)) / (1 + z**2 / n)
        around = z * sqrt(point * (1 - point) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        return Estimate(point=point, low=max(middle - around, 0.0), high=min(middle + around, 1.0))

    @property
    def broken(self) -> bool:
        """Whether the interval says that fewer are kept than a deadline promises."""
        return self.share.high < DEADLINE_SHARE
