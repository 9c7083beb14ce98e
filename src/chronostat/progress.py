"""What a long run says while it runs: phases with the share that is done. The library itself is silent."""

from typing import Protocol

from chronostat.records import Phase


class DataWarning(UserWarning):
    """A picture or sample is read, though not all of it; said once for each kind."""


class Progress(Protocol):
    """Shows how far a run is. Called between trials, never inside a measured span."""

    def begin(self, phase: Phase, length: str) -> None:
        """A phase starts; ``length`` says in words what it takes at most."""
        ...

    def advance(self, fraction: float, note: str) -> None:
        """The phase that runs is ``fraction`` in [0, 1] done; ``note`` is for people."""
        ...

    def warn(self, text: str) -> None:
        """Something a person should know has happened; the run goes on."""
        ...

    def end(self, note: str) -> None:
        """The phase that runs has ended."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, phase: Phase, length: str) -> None:
        """Nothing."""

    def advance(self, fraction: float, note: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def end(self, note: str) -> None:
        """Nothing."""
