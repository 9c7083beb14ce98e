"""A server put together, run until it is told to end, and ended without losing the running request."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from chronostat.errors import ConfigError
from chronostat.serving.service import Service

_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection, so that none asks while its connection is closed
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: one that the system picks.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error}; choose others with --host and --port"
        ) from None
    # what is accepted inherits it; asyncio sets it only on sockets made with a protocol number, and without it the body
    # of an answer waits some 40 ms for the client's acknowledgement of its head
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host in _LOOPBACK


class Server(uvicorn.Server):
    """Ends the service before its connections: who waits is told, who is being answered gets the answer."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=_KEEP_ALIVE_S)
        )
        self._service = service

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once when a signal or a failure ends the server."""
        self._service.end()
        await super().shutdown(sockets)
        self._service.wait()


def serve_until_told(app: FastAPI, service: Service, listening: socket.socket, *, began: Callable[[str], None]) -> None:
    """Run until SIGTERM, ctrl-C or a failure of the worker.

    Args:
        app: the application.
        service: started here.
        listening: where it listens.
        began: told the address.

    Raises:
        Exception: what the worker failed with.
    """
    server = Server(app, service)
    service.start(failed=server.stop)
    host, port = listening.getsockname()[:2]
    began(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run(sockets=[listening])
    if service.error is not None:
        raise service.error
