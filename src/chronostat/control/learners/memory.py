"""What learners remember: measured trials and the scale of observations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_FLOOR = 1e-6  # smallest standard deviation: a value that never varied stays 0 until it does
_WIDTH = 5.0  # standard deviations that become 1


class Trials:
    """The latest measured trials, as columns of equal length.

    A group is cut into rows of at most ``group_size`` draws; the column ``valid`` tells draws from padding.

    Args:
        observation_size: D.
        group_size: G.
        capacity: rows kept; then the oldest is overwritten.
        values: names of the numbers that are kept of each draw.
    """

    def __init__(self, observation_size: int, group_size: int, capacity: int, values: Sequence[str]) -> None:
        self._capacity = capacity
        self._group_size = group_size
        self._added = 0
        self._columns = {
            "observation": torch.zeros(0, observation_size),
            "settings": torch.zeros(0, group_size, dtype=torch.int64),
            "valid": torch.zeros(0, group_size, dtype=torch.bool),
            **{name: torch.zeros(0, group_size) for name in values},
        }

    def __len__(self) -> int:
        return min(self._added, self._capacity)

    def __getitem__(self, column: str) -> Tensor:
        """One column: observation [N, D]; settings, valid and each of the values [N, G]."""
        return self._columns[column][: len(self)]

    def add(self, observation: Tensor, settings: Tensor, **values: Tensor) -> list[int]:
        """Keep one group.

        Args:
            observation: shape [D].
            settings: shape [n].
            values: shape [n] each.

        Returns:
            The rows that hold it now.
        """
        parts = {name: value.split(self._group_size) for name, value in {"settings": settings, **values}.items()}
        return [
            self._add_row(observation, {name: part[i] for name, part in parts.items()})
            for i in range(len(parts["settings"]))
        ]

    def _add_row(self, observation: Tensor, group: Mapping[str, Tensor]) -> int:
        row = self._added % self._capacity
        self._added += 1
        if len(self) > len(self._columns["valid"]):
            self._grow()
        self._columns["observation"][row] = observation
        self._columns["valid"][row] = torch.arange(self._group_size) < len(group["settings"])
        for name, value in group.items():
            self._columns[name][row, : len(value)] = value
        return row

    def _grow(self) -> None:
        rows = min(max(64, 2 * len(self._columns["valid"])), self._capacity)
        for name, old in self._columns.items():
            self._columns[name] = torch.zeros(rows, *old.shape[1:], dtype=old.dtype)
            self._columns[name][: len(old)] = old

    def state(self) -> dict[str, Tensor]:
        """All columns, and how many rows were ever added."""
        return {name: self[name].clone() for name in self._columns} | {"added": torch.tensor(self._added)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        self._columns = {name: state[name].clone() for name in self._columns}
        self._added = int(state["added"])


class Scale:
    """Running mean and variance of each observed value (Welford 1962), to bring them all to one size.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        self._count = torch.zeros((), dtype=torch.float64)
        self._mean = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)
        self._refresh()

    def add(self, observation: Tensor) -> None:
        """Take one observation of shape [D]."""
        value = observation.double()
        self._count += 1
        delta = value - self._mean
        self._mean += delta / self._count
        self._squares += delta * (value - self._mean)
        self._refresh()

    def __call__(self, observation: Tensor) -> Tensor:
        """Centred, five standard deviations made 1 and what lies beyond them clipped, shape [..., D]."""
        return ((observation - self._shift) * self._factor).clamp(-1, 1)

    def _refresh(self) -> None:
        deviation = (self._squares / self._count.clamp(min=1)).sqrt()
        self._shift = self._mean.float()
        self._factor = (1 / (_WIDTH * deviation.clamp(min=_FLOOR))).float()

    def state(self) -> dict[str, Tensor]:
        """Count, means [D] and sums of squared deviations [D]."""
        return {"count": self._count.clone(), "mean": self._mean.clone(), "squares": self._squares.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        self._count, self._mean, self._squares = (state[key].clone() for key in ("count", "mean", "squares"))
        self._refresh()
