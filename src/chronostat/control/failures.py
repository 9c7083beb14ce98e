"""Settings whose executions keep failing leave the action space; a single failure costs its draw and no more."""

from collections.abc import Mapping, Sequence

from chronostat.errors import MeasurementError
from chronostat.knobs.space import ActionSpace
from chronostat.records import Setting, Trial

IN_A_ROW = 3  # failures of one setting that take it out


class Failures:
    """Counts how often each setting has failed in a row, whatever the samples.

    Args:
        space: the settings.
        streaks: where to go on, in the order of the space; empty: from nothing.
        reasons: likewise, by position.

    Attributes:
        reasons: why an execution of a setting failed last, by its position.
    """

    def __init__(
        self, space: ActionSpace, streaks: Sequence[int] = (), reasons: Mapping[int, str] | None = None
    ) -> None:
        self._space = space
        self._streaks = list(streaks) or [0] * len(space)
        self.reasons = dict(reasons or {})

    @property
    def streaks(self) -> tuple[int, ...]:
        """Failures in a row of each setting."""
        return tuple(self._streaks)

    @property
    def taken_out(self) -> list[int]:
        """Positions of the settings that have left."""
        return [position for position, streak in enumerate(self._streaks) if streak >= IN_A_ROW]

    @property
    def legal_settings(self) -> list[Setting]:
        """Those that have not."""
        return [s for s, streak in zip(self._space.settings, self._streaks, strict=True) if streak < IN_A_ROW]

    def add(self, trial: Trial, *, earlier: bool = False) -> list[int]:
        """Count a trial.

        Args:
            trial: the executions.
            earlier: they are of a process that has ended. ``full`` has worked since, at the start of this one, so what
                it did there counts no more: otherwise a run that stopped for it could never go on.

        Returns:
            Positions of the settings that leave with it.

        Raises:
            MeasurementError: ``full`` has failed too often: without it nothing can be compared.
        """
        by_position: dict[int, list[str | None]] = {}
        for execution in trial.executions:
            by_position.setdefault(self._space.index(execution.setting), []).append(execution.invalid)
        if earlier:
            by_position.pop(0, None)
        leaving: list[int] = []
        for position, reasons in by_position.items():
            failed = [reason for reason in reasons if reason is not None]
            self._streaks[position] = self._streaks[position] + 1 if len(failed) == len(reasons) else 0
            if failed:
                self.reasons[position] = failed[-1]
            if self._streaks[position] == IN_A_ROW:
                leaving.append(position)
        if 0 in leaving:
            raise MeasurementError(
                f"full failed {IN_A_ROW} times in a row, so latencies have nothing to be a fraction of: "
                f"{self.reasons[0]}. Free what the model needs, or "
                "raise measure.time_limit_s if it was too short"
            )
        return leaving
