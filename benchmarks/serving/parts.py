"""What is measured? What serving adds, deadlines, a long day, kill -9, and the server of transformers beside ours."""

import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from itertools import cycle, islice
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import httpx2
import numpy as np

from benchmarks.kit.estimates import ratio_interval
from benchmarks.serving.asking import NEW_TOKENS, Client, Told, poisson, questions
from benchmarks.serving.servers import Server, ours, theirs
from chronostat.compare.statistics import share_interval
from chronostat.control.controller import load_controller
from chronostat.control.controller_files import read_controller
from chronostat.models.load import load_vlm
from chronostat.records import Setting, plain
from chronostat.serving.log import read_requests

FRACTIONS = (0.5, 0.7, 0.9)  # of what full takes: the budgets
LOAD = 0.6  # of what a server of full could answer at most
_WARMING, _BLOCK = 10, 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the command line asked for."""

    controller: Path
    folder: Path
    requests: int


def overhead(task: Task) -> dict[str, Any]:
    """Blocks of requests through the server and of ``Controller.generate`` in this process, in turn."""
    asked = questions(task.requests)
    vlm = load_vlm(device="cpu")
    controller = load_controller(task.controller, vlm.model, vlm.processor)
    loose_ms = 100 * controller.full_ms
    served: list[Told] = []
    own_ms: list[float] = []
    with ours("controller", task.folder, "--controller", str(task.controller)) as server:
        client = Client(server)
        for question in asked[:_WARMING]:
            client.ask(question, loose_ms)
        for first in range(0, len(asked), _BLOCK):
            block = asked[first : first + _BLOCK]
            served += [client.ask(question, loose_ms) for question in block]
            for question in block:
                images = question.sample.load_images()
                start_s = perf_counter()
                controller.generate(
                    vlm.model,
                    vlm.processor,
                    images,
                    question.sample.prompt,
                    budget_ms=loose_ms,
                    kind="deadline",
                    max_new_tokens=NEW_TOKENS,
                )
                own_ms.append((perf_counter() - start_s) * 1e3)
        server.end()
        log = _by_id(server)
    rows = [(told, log[told.id]) for told in served]
    added_ms = [told.client_ms - row["wall_ms"] - row["image_ms"] for told, row in rows]
    return {
        "requests": len(rows),
        "client_ms": _quantiles([told.client_ms for told, _ in rows]),
        "generate_in_this_process_ms": _quantiles(own_ms),
        "added_ms": _quantiles(added_ms),
        "of_that_to_its_turn_ms": _quantiles([row["queue_ms"] for _, row in rows]),
        "decoding_the_picture_ms": _quantiles([row["image_ms"] for _, row in rows]),
    }


def deadlines(task: Task) -> dict[str, Any]:
    """The controller, full and the fastest setting: one request in flight, then Poisson arrivals, at three budgets."""
    asked = questions(task.requests)
    metadata = read_controller(task.controller)[0].controller
    fastest = Setting({knob: values[-1] for knob, values in metadata.levels.items()})
    held = {
        "controller": ("--controller", str(task.controller)),
        "full": (),
        "fastest": ("--setting", str(fastest)),
    }
    found: dict[str, Any] = {}
    full_ms = 0.0
    for name, words in held.items():
        with ours(name, task.folder, *words) as server:
            if name == "controller":
                (model,) = httpx2.get(f"{server.address}/v1/models").json()["data"]
                full_ms = model["chronostat"]["full_ms"]
            for fraction in FRACTIONS:
                budget_ms, client = fraction * full_ms, Client(server)
                for question in asked[:_WARMING]:
                    client.ask(question)
                alone = [client.ask(question, budget_ms) for question in asked]
                arriving = poisson(server, asked, per_s=LOAD / full_ms * 1e3, budget_ms=budget_ms, seed=0)
                found[f"{name} {fraction}"] = {
                    "budget_ms": budget_ms,
                    "one in flight": _kept(alone, budget_ms),
                    "poisson": _kept(arriving, budget_ms),
                }
    return {"full_ms": full_ms, "rows": found}


def endurance(task: Task) -> dict[str, Any]:
    """Many requests in a row: memory by quarters, and what became of each."""
    asked = questions(min(task.requests, 100))
    resident: list[float] = []
    statuses: Counter[int] = Counter()
    with ours("endurance", task.folder) as server:
        client = Client(server)
        for number, question in enumerate(islice(cycle(asked), task.requests)):
            statuses[client.ask(question).status] += 1
            if number % 5 == 0:
                resident.append(server.resident_mib)
        server.end()
        stored = len(_by_id(server))
    quarters = [float(np.median(each)) for each in np.array_split(resident, 4)]
    return {
        "requests": task.requests,
        "statuses": {str(status): count for status, count in statuses.items()},
        "stored": stored,
        "resident_mib_by_quarter": quarters,
        "last_over_second": quarters[3] / quarters[1],
    }


def kill(task: Task) -> dict[str, Any]:
    """Four clients at once, and kill -9 in the middle: every answer that arrived is in the store."""
    asked = questions(20)
    answered: list[str] = []
    with ours("killed", task.folder) as server:

        def go_on() -> None:
            client = Client(server)
            for question in cycle(asked):
                try:
                    answered.append(client.ask(question).id)
                except (OSError, HTTPException):
                    return

        clients = [Thread(target=go_on) for _ in range(4)]
        for client in clients:
            client.start()
        while len(answered) < min(task.requests, 50):
            clients[0].join(0.05)
        server.end(signal.SIGKILL)
        for client in clients:
            client.join()
        stored = _by_id(server)
    return {"answered": len(answered), "stored": len(stored), "lost": len(set(answered) - set(stored))}


def versus(task: Task) -> dict[str, Any]:
    """Each question to one server, then to the other, in turns that change."""
    asked = questions(task.requests)
    with ours("full", task.folder) as own, theirs() as other:
        clients = {server.name: Client(server) for server in (own, other)}
        for question in asked[:_WARMING]:
            for client in clients.values():
                client.ask(question)
        told: dict[str, list[Told]] = {name: [] for name in clients}
        for number, question in enumerate(asked):
            for name in sorted(clients, reverse=bool(number % 2)):
                told[name].append(clients[name].ask(question))
    ours_ms, theirs_ms = ([each.client_ms for each in told[server.name]] for server in (own, other))
    return {
        "ours": {"client_ms": _quantiles(ours_ms), **_answers(told[own.name])},
        "theirs": {"client_ms": _quantiles(theirs_ms), **_answers(told[other.name])},
        "ratio": plain(ratio_interval(ours_ms, theirs_ms)),
    }


PARTS: Mapping[str, Callable[[Task], dict[str, Any]]] = {
    "overhead": overhead,
    "deadlines": deadlines,
    "endurance": endurance,
    "kill": kill,
    "versus": versus,
}


def _by_id(server: Server) -> dict[str, dict[str, Any]]:
    assert server.run is not None, "only ours keeps requests"
    return {row["id"]: row for row in read_requests(server.run).to_pylist()}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return {"p5": low, "p50": middle, "p95": high}


def _kept(told: Sequence[Told], budget_ms: float) -> dict[str, Any]:
    """By what the server charged, and by what the client waited."""
    answers = [each for each in told if each.status == 200]
    charged = sum(each.body["chronostat"]["charged_ms"] <= budget_ms for each in answers)
    waited = sum(each.client_ms <= budget_ms for each in answers)
    return {
        **_answers(told),
        "kept": plain(share_interval(charged, len(told))),
        "kept_as_the_client_waits": plain(share_interval(waited, len(told))),
        "meetable": sum(each.body["chronostat"]["meetable"] is not False for each in answers) / len(told),
    }


def _answers(told: Sequence[Told]) -> dict[str, Any]:
    return {
        "answered": sum(each.status == 200 for each in told),
        "right": float(np.mean([each.right for each in told])),
    }
