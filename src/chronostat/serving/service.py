"""The one thread that owns the model: it warms up, answers one request after the other, and logs each."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from threading import Thread
from typing import Literal, Protocol

from chronostat.errors import StoreError
from chronostat.measure.clock import Clock
from chronostat.serving.answering import Answerer, explained
from chronostat.serving.line import Job, Line, ending
from chronostat.serving.log import RequestLog
from chronostat.serving.served import Served
from chronostat.wire.asks import Answered
from chronostat.wire.errors import Refused

State = Literal["warming", "ready", "ending", "failed"]
_MERGED_AT = 1_000  # requests in the log


class Keeper(Protocol):
    """What is done between requests to keep promises."""

    def begin(self, ended: Callable[[], bool]) -> None:
        """Before the first request; what is left is left out once the server ends."""
        ...

    def between(self, *, waiting: bool) -> float:
        """One execution at most; seconds after which to be asked again if no request comes."""
        ...


class Service:
    """Answers what joins the line.

    Args:
        answerer: owns the model.
        line: of jobs.
        log: of requests; merged here.
        count: told of every request, for metrics.
        keeper: asked between requests.
        clock: of the server.
        prepared: entered by the thread before it answers, and left at its end; the answerer is warm inside.

    Attributes:
        state: ``ready`` once every setting is warm.
        error: why it failed, or what could not be logged as it ended.
    """

    def __init__(
        self,
        answerer: Answerer,
        line: Line,
        log: RequestLog,
        *,
        count: Callable[[Served], None],
        keeper: Keeper,
        clock: Clock,
        prepared: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.answerer, self.line, self.clock = answerer, line, clock
        self.state: State = "warming"
        self.error: Exception | None = None
        self._log, self._count, self._keeper = log, count, keeper
        self._prepared = prepared
        self._thread: Thread | None = None

    def start(self, failed: Callable[[], None] = lambda: None) -> None:
        """Warm up, then answer.

        Args:
            failed: called by the worker if it cannot go on.
        """
        self._thread = Thread(target=self._run, args=(failed,), name="chronostat-worker", daemon=True)
        self._thread.start()

    def join(self, job: Job) -> None:
        """Take a place in the line.

        Raises:
            Refused: not ready, failed, no place, or a strict budget that nothing can keep.
        """
        if self.state == "failed":
            raise Refused(503, "the server has failed and ends; its own output says why", code="failed")
        if self.state == "warming":
            raise Refused(503, "the server warms up; /health says when it is ready", code="warming", retry_after_s=5)
        if job.ask.budget is not None:
            self.answerer.require_meetable(job.ask.budget)
        self.line.join(job)

    def leave(self, job: Job) -> None:
        """The client of a job is gone."""
        if self.line.leave(job):
            self.note(Served(id=job.ask.id, received=job.received, ask=job.ask, outcome=None, gone=True))

    def note(self, served: Served) -> None:
        """Log and count one request.

        Raises:
            StoreError: it cannot be logged.
        """
        self._log.append(served)
        self._count(served)

    def end(self) -> None:
        """Answer nobody who waits, whose dismissal is logged if it can be; the running request is finished."""
        if self.state != "failed":
            self.state = "ending"
        for job in self.line.close():
            try:
                self._finish(job, ending())
            except StoreError as error:  # this one was told; the next ones have to be as well
                self.error = self.error or error

    def wait(self) -> None:
        """Until the running request is answered; then the log is merged. Nothing may be noted after that.

        Raises:
            StoreError: the disk cannot be written; what was logged stays readable.
        """
        if self._thread is not None:
            self._thread.join()
        self._log.close()

    def _run(self, failed: Callable[[], None]) -> None:
        try:
            with self._prepared():
                self._keeper.begin(lambda: self.line.closed)
                if self.state == "warming":
                    self.state = "ready"
                self._work()
        except Exception as error:  # noqa: BLE001 - kept for whoever started the server, who raises it
            self.state, self.error = "failed", error
            self.end()
            failed()

    def _work(self) -> None:
        wait_s = 0.0
        while not self.line.closed:
            job = self.line.take(wait_s)
            if job is not None:
                self._answer(job)
            wait_s = self._keeper.between(waiting=len(self.line) > 0)
            if self._log.pending >= _MERGED_AT:
                self._log.merge()

    def _answer(self, job: Job) -> None:
        start_ns = self.clock.host_ns()
        try:
            outcome = self.answerer.answer(job.ask, job.told, lambda: job.gone)
        except Exception as error:  # noqa: BLE001 - what a model raises is not known; the client is told, and it is logged
            outcome = explained(error)
        self.line.took(self.clock.host_ms_since(start_ns) / 1e3)
        self._finish(job, outcome)

    def _finish(self, job: Job, outcome: Answered | Refused) -> None:
        """Log it before anybody learns of it."""
        try:
            self.note(Served(id=job.ask.id, received=job.received, ask=job.ask, outcome=outcome, gone=job.gone))
        except StoreError as error:
            job.done(explained(error))
            raise
        job.done(outcome)


def now() -> str:
    """The time of day in UTC, as the log has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
