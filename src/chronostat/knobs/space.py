"""The action space: every combination of the knobs' values that is legal."""

from collections.abc import Mapping, Sequence
from itertools import product

from chronostat.errors import KnobError
from chronostat.records import KnobValue, Setting


class ActionSpace:
    """The product of the knobs' values, in a fixed order; setting 0 is ``full``.

    Args:
        levels: for each knob its values, the full one first.

    Attributes:
        settings: all settings, length S.
        levels: for each of K knobs its values.
        level_indices: for each setting the position of its value in each knob's levels, shape [S][K].
    """

    def __init__(self, levels: Mapping[str, Sequence[KnobValue]]) -> None:
        for knob, values in levels.items():
            if not values or len(set(values)) != len(values):
                raise KnobError(f"knob {knob} needs distinct values, full first; got {list(values)}")
        self.levels: dict[str, tuple[KnobValue, ...]] = {knob: tuple(values) for knob, values in levels.items()}
        self.level_indices = tuple(product(*(range(len(values)) for values in self.levels.values())))
        self.settings = tuple(
            Setting({knob: self.levels[knob][i] for knob, i in zip(self.levels, row, strict=True)})
            for row in self.level_indices
        )
        self._positions = {setting: i for i, setting in enumerate(self.settings)}

    @property
    def full(self) -> Setting:
        """The setting that changes nothing."""
        return self.settings[0]

    def __len__(self) -> int:
        return len(self.settings)

    def index(self, setting: Setting) -> int:
        """Position of a setting.

        Raises:
            KnobError: the setting is not in the space; names the legal values.
        """
        try:
            return self._positions[setting]
        except KeyError:
            legal = "; ".join(f"{knob}: {', '.join(map(str, values))}" for knob, values in self.levels.items())
            raise KnobError(f"setting {setting} is not in the action space; legal values are {legal}") from None

    def to_json(self) -> dict[str, list[KnobValue]]:
        """Plain data that ``from_json`` reads back."""
        return {knob: list(values) for knob, values in self.levels.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[int | Sequence[int]]]) -> "ActionSpace":
        """The space that ``to_json`` described."""
        return cls(
            {
                knob: [value if isinstance(value, int) else tuple(value) for value in values]
                for knob, values in data.items()
            }
        )
