"""A controller kept right while it serves: ``full`` and some settings measured between requests, one at a time."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from chronostat.control.calibration import calibrated_settings
from chronostat.control.controller import Controller
from chronostat.control.recalibration import Recalibration, recalibrated
from chronostat.errors import MeasurementError
from chronostat.execution.execute import Request, SampleRequest
from chronostat.execution.trials import TrialRunner
from chronostat.measure.clock import Clock
from chronostat.records import Execution, Source, Trial
from chronostat.serving.choosing import Controlled
from chronostat.serving.promises import Promises
from chronostat.serving.service import now
from chronostat.wire.asks import Answered

FIRST, URGENT = 60, 24  # executions of a calibration; of one while requests may wait for each of them
_RECENT = 12  # requests that it is measured on
_MOST_PIXELS = 4_000_000  # of such a request: its pictures are kept
_QUIET_S = 60.0  # without a request, after which measuring disturbs nobody
_ASK_AGAIN_S = 1.0


class Nothing:
    """Where one setting is served nothing has to be renewed, and nothing was promised."""

    calibrated: str | None = None

    def __init__(self) -> None:
        self.promises = Promises()

    def begin(self, ended: Callable[[], bool]) -> None:
        """Nothing."""
        del ended

    def between(self, *, waiting: bool) -> float:
        """Nothing."""
        del waiting
        return _ASK_AGAIN_S

    def under(self, conditions: str, source: Source | None) -> None:
        """Nothing is measured."""

    def noted(self, request: SampleRequest, answered: Answered) -> None:
        """Nothing."""


class Renewing:
    """Renews the controller before the first request, when promises are broken, and after a quiet while.

    Args:
        controlled: whose controller is renewed.
        runner: executes; what it measures is stored.
        requests: of the kind to come, until there are some that came.
        clock: of the server.
        every_s: a controller older than this is renewed when it has been quiet for a minute.
        told: told of each renewal, or why there was none.

    Attributes:
        promises: since the last calibration.
        calibrated: when that was, in UTC; None: not yet.
    """

    def __init__(
        self,
        controlled: Controlled,
        runner: TrialRunner,
        requests: Sequence[SampleRequest],
        *,
        clock: Clock,
        every_s: float,
        told: Callable[[Recalibration | MeasurementError], None],
    ) -> None:
        self._controlled, self._runner, self._clock = controlled, runner, clock
        self._every_s, self._told = every_s, told
        self._recent = deque(requests, maxlen=_RECENT)
        self._round: _Round | None = None
        self._rounds = 0
        self._in_haste = False  # the latest calibration was: the next quiet minute has time for a better one
        self._renewed_ns = self._request_ns = clock.host_ns()
        self.promises = Promises()
        self.calibrated: str | None = None

    def begin(self, ended: Callable[[], bool]) -> None:
        """Renew what settings take here and today.

        Args:
            ended: asked before each execution; the controller then stays as it is.

        Raises:
            MeasurementError: ``full`` could not be measured, or too little else.
        """
        started = self._start(FIRST)
        going = True
        while going and not ended():
            going = started.step()
        if not going:
            self._take(started)

    def under(self, conditions: str, source: Source | None) -> None:
        """What it measures from now on has these conditions, by their fingerprint, and this source."""
        self._runner.conditions, self._runner.source = conditions, source

    def noted(self, request: SampleRequest, answered: Answered) -> None:
        """A request was answered."""
        self._request_ns = self._clock.host_ns()
        if 0 < sum(image.width * image.height for image in request.images) <= _MOST_PIXELS:
            self._recent.append(request)
        if not self._is_forecast(answered):
            return
        if answered.forecast_ms is not None:
            self._controlled.follow(answered.forecast_ms, answered.execution.charged_ms(answered.metric))
        if answered.kept is not None and answered.meetable:
            self.promises.add(kept=answered.kept)

    def between(self, *, waiting: bool) -> float:
        """One execution where one is due; unless promises are broken only in a quiet minute, also once it has begun.

        Returns:
            Seconds after which to ask again.
        """
        if self._round is None and self._due():
            self._in_haste = self.promises.broken
            self._round = self._start(URGENT if self._in_haste else FIRST)
        disturbs = waiting or not self._quiet
        if self._round is None or (disturbs and not self.promises.broken):
            return _ASK_AGAIN_S
        if not self._round.step():
            finished, self._round = self._round, None
            try:
                self._take(finished)
            except MeasurementError as error:  # the controller stays as it is, and it is said
                self._reset()
                self._told(error)
        return 0.0

    def _due(self) -> bool:
        old = self._in_haste or self._clock.host_ms_since(self._renewed_ns) / 1e3 >= self._every_s
        return self.promises.broken or (self._quiet and old)

    @property
    def _quiet(self) -> bool:
        return self._clock.host_ms_since(self._request_ns) / 1e3 >= _QUIET_S

    def _is_forecast(self, answered: Answered) -> bool:
        """Whether what is known of latencies reaches to its end: measuring again mends no other lengths."""
        natural = not answered.forced and len(answered.execution.output_ids) <= self._runner.max_new_tokens
        return answered.metric == "ttft_ms" or natural

    def _start(self, executions: int) -> "_Round":
        self._rounds += 1
        controller, requests = self._controlled.controller, list(self._recent)
        return _Round(controller, self._runner, requests, executions, seed=self._rounds)

    def _take(self, finished: "_Round") -> None:
        renewed = recalibrated(self._controlled.controller, self._runner.model, finished.measured, self._clock)
        self._controlled.renew(renewed.controller)
        self.calibrated = now()
        self._reset()
        self._told(renewed)

    def _reset(self) -> None:
        self.promises = Promises()
        self._renewed_ns = self._clock.host_ns()


def without_answers(trial: Trial) -> Trial:
    """What was measured on a request, without what the model said to it."""
    silent = tuple(replace(each, answer=None, output_ids=()) for each in trial.executions)
    return replace(trial, executions=silent)


class _Round:
    """One calibration, execution by execution."""

    def __init__(
        self,
        controller: Controller,
        runner: TrialRunner,
        requests: Sequence[SampleRequest],
        most: int,
        *,
        seed: int,
    ) -> None:
        self._runner = runner
        groups = calibrated_settings(controller.space, most, seed)
        executions: list[list[Execution]] = [[] for _ in groups]
        on = [requests[index % len(requests)] for index in range(len(groups))]
        self._todo = deque((on[i], setting, executions[i]) for i, group in enumerate(groups) for setting in group)
        self.measured: list[tuple[Request, Sequence[Execution]]] = list(zip(on, executions, strict=True))
        self._index = seed * 2 * FIRST  # of trials: no other round has the same

    def step(self) -> bool:
        """Execute the next one; False after the last."""
        request, setting, executions = self._todo.popleft()
        executions.extend(self._runner.run("calibrate", self._index, request, [setting]).executions)
        self._index += 1
        return bool(self._todo)
