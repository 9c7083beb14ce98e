"""What does kill -9 lose? Four clients ask, the server is killed, and its log is searched for their answers."""

import signal
from http.client import HTTPException
from itertools import cycle
from threading import Thread
from typing import Any

from benchmarks.kit.blocks import TimeBox
from benchmarks.serving.asking import Client, questions
from benchmarks.serving.servers import ours
from benchmarks.serving.task import Task, stored
from chronostat.compare.statistics import share_interval
from chronostat.records import plain

_CLIENTS, _DIFFERENT, _LOOK_S = 4, 20, 0.05


def kill(task: Task) -> dict[str, Any]:
    """Killed once so many answers have arrived, or the seconds are over."""
    asked = questions(_DIFFERENT)
    answered: list[str] = []
    with ours("killed", task.folder) as server:

        def go_on() -> None:
            client = Client(server)
            for question in cycle(asked):
                try:
                    answered.append(client.ask(question).id)
                except (OSError, HTTPException):
                    return  # killed

        clients = [Thread(target=go_on) for _ in range(_CLIENTS)]
        for client in clients:
            client.start()
        box = TimeBox(task.seconds)
        while len(answered) < task.requests and box.left_s() and server.process.poll() is None:
            clients[0].join(_LOOK_S)
        server.end(signal.SIGKILL)
        for client in clients:
            client.join()
        log = stored(server)
    lost = sorted(set(answered) - set(log))
    return {
        "requests": len(answered),
        "sources": {"lost": "ids of answers that the clients have and the killed server's log has not"},
        "answered": len(answered),
        "stored": len(log),
        "lost": len(lost),
        "lost_share": plain(share_interval(len(lost), len(answered))),
        "raw": {"answered": answered, "lost": lost},
    }
