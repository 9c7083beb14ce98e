"""Ctrl-C while a verb measures that stores nothing by itself: what was measured is shown, not lost."""

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_interrupt_ends_measuring() -> Generator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only makes what is yielded true; the second interrupts as ever.

    Yields:
        Whether there was one. Whoever measures asks between executions, and ends as if its limit was reached.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield lambda: False
        return
    seen = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        seen.set()
        signal.signal(signal.SIGINT, earlier)
        sys.stderr.write("chronostat: ends after what is being executed; Ctrl-C again ends at once, without result\n")

    earlier = signal.signal(signal.SIGINT, note)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, earlier)
