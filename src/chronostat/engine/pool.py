"""The bounded pool of all captured forwards of a model."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Protocol

from chronostat.engine.replaying import CannotCapture, Replay


class Captured(Protocol):
    """A forward that was captured."""

    @property
    def replay(self) -> Replay:
        """Does the work."""
        ...


def why_slower(made: int) -> str | None:
    """What captures say of the call they were made in; None: there were none."""
    return f"the engine captured {made} graph(s) meanwhile, as a first call does: warm up" if made else None


class Pool:
    """What was captured, by what they depend on; the one that was used longest ago leaves first.

    Args:
        most: that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._programs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._refused: OrderedDict[Hashable, str] = OrderedDict()

    @property
    def programs(self) -> tuple[Captured, ...]:
        """All that are kept, the one used longest ago first."""
        return tuple(self._programs.values())

    @property
    def replays(self) -> tuple[Replay, ...]:
        """Those of all that are kept."""
        return tuple(program.replay for program in self._programs.values())

    def find(self, key: Hashable) -> Captured | None:
        """What was captured for this.

        Raises:
            CannotCapture: it was tried.
        """
        if key in self._refused:
            raise CannotCapture(self._refused[key])
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
        return program

    def keep(self, key: Hashable, program: Captured) -> int:
        """Add one.

        Returns:
            How many had to leave.
        """
        self._programs[key] = program
        leaving = max(0, len(self._programs) - self._most)
        for _ in range(leaving):
            self._programs.popitem(last=False)
        return leaving

    def refuse(self, key: Hashable, reason: str) -> None:
        """Do not try this again."""
        self._refused[key] = reason
        if len(self._refused) > self._most:
            self._refused.popitem(last=False)

    def clear(self) -> None:
        """Give all memory back."""
        self._programs.clear()
        self._refused.clear()
