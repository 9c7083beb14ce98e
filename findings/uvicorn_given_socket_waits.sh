#!/usr/bin/env bash
# A uvicorn server that is given a listening socket answers on connections without TCP_NODELAY.
#
# Versions: uvicorn 0.54.0 on the asyncio of CPython 3.11 (no uvloop), Linux. Loopback only; ends by itself.
#
# Input: one ASGI application, served twice: by host and port, and on a socket from socket.create_server(), as a program
# does that wants to know its port, or to bind, before the server begins.
#
# Expected: the same connections. asyncio's documentation says that TCP_NODELAY is set by default on all TCP connections.
#
# Behaviour: it is set where uvicorn binds by itself, and not where the socket is given. The head of an answer and its body
# are written one after the other, so the body then waits for the client's delayed acknowledgement of the head: some 40 ms
# an answer, more than the first token of a small model takes. A server of a model looks slow by a constant that no
# measurement inside it shows.
#
# Cause: asyncio sets the option on accepted sockets whose protocol number is IPPROTO_TCP. socket.create_server() makes its
# socket with protocol number 0, and what is accepted from it has 0 as well.
#
# Exit status: 0 if it is still so, 1 if the behaviour has changed.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet uvicorn==0.54.0 h11==0.16.0

"$python" - <<'PYTHON'
import asyncio
import socket
import sys
from urllib.request import urlopen

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

seen: list[int] = []


class Noting(H11Protocol):
    """Notes the option of each connection that is made."""

    def connection_made(self, transport):
        accepted = transport.get_extra_info("socket")
        seen.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        super().connection_made(transport)


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def served(sockets):
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=Noting, loop="asyncio", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=sockets))
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/", timeout=10).read())
    server.should_exit = True
    await task
    return seen[-1]


by_itself = asyncio.run(served(None))
with socket.create_server(("127.0.0.1", 0)) as listening:
    given = asyncio.run(served([listening]))
print(f"TCP_NODELAY of an accepted connection: {by_itself} where uvicorn binds, {given} where it is given the socket")
if not by_itself or given:
    print("CHANGED: both have it, or neither has")
    sys.exit(1)
print("AS DESCRIBED: only where uvicorn binds by itself.")
PYTHON
