"""Bodies as they arrive: each within its limit, and all without an answer within what memory they may take."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from chronostat.serving.served import GONE
from chronostat.wire.errors import Refused
from chronostat.wire.images import Limits

_BODY_S = 60.0  # to send a request in

Take = Callable[[int], None]
"""Counts bytes of one request; raises ``Refused`` where no more can be held."""


class Held:
    """Bytes of requests from their arrival until their answers begin.

    Args:
        most: of all together.
        retry_after_s: when to come again.
    """

    def __init__(self, most: int, retry_after_s: Callable[[], int]) -> None:
        self._most, self._retry_after_s = most, retry_after_s
        self.bytes = 0

    @contextmanager
    def one(self) -> Generator[Take]:
        """Counts what one request takes, and gives it back at the end."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self.bytes + size > self._most:
                raise Refused(
                    429,
                    f"requests without an answer hold {self.bytes:,} bytes already, and {self._most:,} are all that "
                    "they may; come again later",
                    code="memory_full",
                    retry_after_s=self._retry_after_s(),
                )
            mine += size
            self.bytes += size

        try:
            yield take
        finally:
            self.bytes -= mine


async def body_of(request: Request, limits: Limits, take: Take) -> bytes:
    """The whole body.

    Raises:
        Refused: it is too large, takes too long, or there is no memory for it now.
    """
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > limits.body:
        raise _too_large(int(said), limits.body)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                take(len(chunk))
                body += chunk
                if len(body) > limits.body:
                    raise _too_large(len(body), limits.body)
    except TimeoutError:
        raise Refused(
            408, f"the body took longer than {_BODY_S:.0f} s to arrive; send it again", code="timeout"
        ) from None
    except ClientDisconnect:
        raise Refused(GONE, "the client went away before its request was complete", code="client_gone") from None
    return bytes(body)


def _too_large(size: int, most: int) -> Refused:
    return Refused(
        413, f"the body has {size:,} bytes; at most {most:,} are taken, send smaller pictures", code="body_too_large"
    )
