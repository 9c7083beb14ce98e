"""The action space: every combination of the knobs' values that is legal and does something of its own."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import product

from chronostat.errors import KnobError
from chronostat.records import KnobValue, Setting


class ActionSpace:
    """The product of the knobs' values less what is pruned, in a fixed order; setting 0 is ``full``.

    Args:
        levels: for each knob its values, the full one first.
        pruned: combinations that are left out, as text, with the reason for each; ``full`` cannot be.

    Attributes:
        settings: all settings, length S.
        levels: for each of K knobs its values.
        pruned: as given.
        level_indices: for each setting the position of its value in each knob's levels, shape [S][K].
    """

    def __init__(self, levels: Mapping[str, Sequence[KnobValue]], pruned: Mapping[str, str] | None = None) -> None:
        for knob, values in levels.items():
            if not values or len(set(values)) != len(values):
                raise KnobError(f"knob {knob} needs distinct values, full first; got {list(values)}")
        self.levels: dict[str, tuple[KnobValue, ...]] = {knob: tuple(values) for knob, values in levels.items()}
        self.pruned: dict[str, str] = dict(pruned or {})
        kept = [(row, setting) for row, setting in _combinations(self.levels) if str(setting) not in self.pruned]
        self.level_indices = tuple(row for row, _ in kept)
        self.settings = tuple(setting for _, setting in kept)
        full = next(_combinations(self.levels))[1]
        if str(full) in self.pruned:
            raise KnobError(f"setting {full} is full, which cannot be pruned: {self.pruned[str(full)]}")
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
            reason = self._why_pruned(setting)
            if reason:
                raise KnobError(f"setting {setting} is not in the action space: {reason}") from None
            legal = "; ".join(f"{knob}: {', '.join(map(str, values))}" for knob, values in self.levels.items())
            raise KnobError(f"setting {setting} is not in the action space; legal values are {legal}") from None

    def _why_pruned(self, setting: Setting) -> str | None:
        """The reason, also where the setting names its knobs in another order."""
        return next((reason for text, reason in self.pruned.items() if Setting.parse(text) == setting), None)

    def to_json(self) -> dict[str, list[KnobValue]]:
        """The levels as plain data, as ``run.json`` holds them; ``pruned`` is plain data already."""
        return {knob: list(values) for knob, values in self.levels.items()}


def pruning(
    levels: Mapping[str, Sequence[KnobValue]],
    objection: Callable[[Setting], str | None],
    effect: Callable[[Setting], Hashable],
) -> dict[str, str]:
    """Which combinations to leave out of a space, as text, with the reason for each.

    Args:
        levels: for each knob its values, the full one first.
        objection: why a combination is illegal; None if it is not.
        effect: what it comes to; of combinations of equal effect the first one stays.
    """
    pruned: dict[str, str] = {}
    first: dict[Hashable, Setting] = {}
    for _, setting in _combinations(levels):
        reason = objection(setting)
        if reason is None:
            known = first.setdefault(effect(setting), setting)
            reason = None if known is setting else f"does the same as {known}"
        if reason is not None:
            pruned[str(setting)] = reason
    return pruned


def _combinations(levels: Mapping[str, Sequence[KnobValue]]) -> Iterator[tuple[tuple[int, ...], Setting]]:
    """The product, the last knob fastest: of each combination the positions of its values, and the setting."""
    for row in product(*(range(len(values)) for values in levels.values())):
        yield row, Setting({knob: levels[knob][i] for knob, i in zip(levels, row, strict=True)})
