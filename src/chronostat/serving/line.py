"""The waiting line: first in, first out, of bounded length; one thread takes from it."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition

from chronostat.wire.asks import Answered, Ask, Piece
from chronostat.wire.errors import Refused

MOST_RETRY_S = 60  # clients of OpenAI do not come again by themselves where they are told to wait much longer
_FIRST_S = 1.0  # a request's time before one was served
_RECENT = 0.2  # weight of the latest request in the typical time


@dataclass(eq=False, kw_only=True)
class Job:
    """One request in the line or being answered.

    Attributes:
        received: the time of day in UTC.
        told: called by the worker with each piece of text.
        done: called by the worker once, with what it came to.
        gone: nobody waits any more; set by the server, read by the worker.
    """

    ask: Ask
    received: str
    told: Callable[[Piece], None]
    done: Callable[[Answered | Refused], None]
    gone: bool = False


class Line:
    """Jobs that wait.

    Args:
        most: longest line; the one being answered is not in it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Job] = deque()
        self._changed = Condition()
        self._typical_s = _FIRST_S
        self._running = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> bool:
        """Whether a request is being answered."""
        return self._running

    def join(self, job: Job) -> None:
        """Wait at the end of the line.

        Raises:
            Refused: it is full, or the server ends.
        """
        with self._changed:
            if self.closed:
                raise ending()
            if len(self._waiting) >= self._most:
                raise self._full()
            self._waiting.append(job)
            self._changed.notify()

    def leave(self, job: Job) -> bool:
        """Its client is gone: its generation ends at the next token, or it gives up its place.

        Returns:
            Whether it was still waiting.
        """
        with self._changed:
            job.gone = True
            waiting = job in self._waiting
            if waiting:
                self._waiting.remove(job)
            return waiting

    def take(self, wait_s: float) -> Job | None:
        """The next one; None if there is none in time, or the line is closed."""
        with self._changed:
            if not self._waiting and not self.closed:
                self._changed.wait(wait_s)
            if not self._waiting:
                return None
            self._running = True
            return self._waiting.popleft()

    def took(self, seconds: float) -> None:
        """The one that was taken is answered, which took so long, for those who are told when to come again."""
        self._running = False
        self._typical_s += _RECENT * (seconds - self._typical_s)

    def close(self) -> list[Job]:
        """Let nobody join any more; those that waited, who will not be answered."""
        with self._changed:
            self.closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        return waiting

    @property
    def retry_after_s(self) -> int:
        """When those before are answered who wait now, a minute at most."""
        wait_s = math.ceil((len(self._waiting) + 1) * self._typical_s)
        return min(max(wait_s, 1), MOST_RETRY_S)

    def _full(self) -> Refused:
        return Refused(
            429,
            f"{len(self._waiting)} requests wait already, which is all that may (--most-waiting); come again later",
            code="queue_full",
            retry_after_s=self.retry_after_s,
        )


def ending() -> Refused:
    """What those are told who are not answered any more."""
    return Refused(503, "the server ends; come again when it is back", code="server_ending", retry_after_s=10)
