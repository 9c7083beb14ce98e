"""What does ours cost beside ``transformers serve``, and what does that one lack? Same model, same client, one run."""

from typing import Any

import transformers

from benchmarks.kit.estimates import ratio_interval
from benchmarks.serving.asking import Client, Told, questions
from benchmarks.serving.probes import PROBES
from benchmarks.serving.servers import ours, theirs
from benchmarks.serving.task import WARMING, Task, answers, columns, spread
from chronostat.records import plain


def versus(task: Task) -> dict[str, Any]:
    """Each question to one server, then to the other, in turns that change; and then what each can do."""
    asked = questions(task.requests)
    with ours("full", task.folder) as own, theirs(task.folder) as other:
        clients = {server.name: Client(server) for server in (own, other)}
        for question in asked[:WARMING]:
            for client in clients.values():
                client.ask(question)
        told: dict[str, list[Told]] = {name: [] for name in clients}
        for number, question in enumerate(task.in_time(asked)):
            for name in sorted(clients, reverse=bool(number % 2)):
                told[name].append(clients[name].ask(question))
        able = {
            name: {"ours": probe(own, asked[0]), "theirs": probe(other, asked[0])} for name, probe in PROBES.items()
        }
    ours_ms, theirs_ms = ([each.client_ms for each in told[server.name]] for server in (own, other))
    return {
        "requests": len(ours_ms),
        "sources": {"client_ms": "perf_counter of the client, from before it sends to the last byte"},
        "transformers": transformers.__version__,
        "ours": {"client_ms": spread(ours_ms), **answers(told[own.name])},
        "theirs": {"client_ms": spread(theirs_ms), **answers(told[other.name])},
        "ours_over_theirs": plain(ratio_interval(ours_ms, theirs_ms)),
        "able": able,
        "raw": {"ours": columns(told[own.name]), "theirs": columns(told[other.name])},
    }
