"""Does a server last? Many requests in a row: its memory by quarters, and what became of each."""

from collections.abc import Sequence
from http.client import HTTPException
from itertools import cycle, islice
from typing import Any

import httpx2
import numpy as np

from benchmarks.kit.estimates import ratio_interval
from benchmarks.serving.asking import Client, questions
from benchmarks.serving.deadlines import FRACTIONS
from benchmarks.serving.servers import ours
from benchmarks.serving.task import Task, raw, spread, stored
from chronostat.records import plain

_DIFFERENT = 100  # questions that are asked again and again
_EVERY = 5  # requests from one look at the memory to the next


def endurance(task: Task) -> dict[str, Any]:
    """The controller's server, under no budget and under three in turn."""
    asked = zip(cycle(questions(min(task.requests, _DIFFERENT))), cycle((None, *FRACTIONS)), strict=False)
    resident_mib: list[float] = []
    client_ms: list[float] = []
    answered: list[str] = []
    errors: list[str] = []
    with ours("endurance", task.folder, "--controller", str(task.controller)) as server:
        (model,) = httpx2.get(f"{server.address}/v1/models").json()["data"]
        full_ms, client = float(model["chronostat"]["full_ms"]), Client(server)
        for number, (question, fraction) in enumerate(task.in_time(islice(asked, task.requests))):
            try:
                told = client.ask(question, None if fraction is None else fraction * full_ms)
            except (OSError, HTTPException) as error:
                errors.append(repr(error))
                if server.process.poll() is not None:
                    break
                client = Client(server)
                continue
            client_ms.append(told.client_ms)
            if told.status == 200:
                answered.append(told.id)
            else:
                errors.append(f"{told.status}: {told.body}")
            if number % _EVERY == 0:
                resident_mib.append(server.resident_mib)
        server.end()
        kept = stored(server)
    return {
        "requests": len(answered) + len(errors),
        "sources": {
            "resident_mib": "psutil: resident memory of the server's process, at every fifth request",
            "client_ms": "perf_counter of the client, from before it sends to the last byte",
            "missing": "answers that the client has and the server's log has not",
        },
        "answered": len(answered),
        "errors": len(errors),
        "missing": len(set(answered) - set(kept)),
        **memory(resident_mib),
        "client_ms": spread(client_ms),
        "raw": {"resident_mib": raw(resident_mib), "client_ms": raw(client_ms), "errors": errors},
    }


def memory(resident_mib: Sequence[float]) -> dict[str, Any]:
    """Medians of its quarters, and the last over the second, pair by pair.

    Args:
        resident_mib: look by look; up to three at the end are left out, so that quarters are of one length.

    Raises:
        ValueError: there are fewer than four.
    """
    size = len(resident_mib) // 4
    if not size:
        raise ValueError(
            f"memory is compared by quarters, and {len(resident_mib)} looks at it are fewer than four; ask for "
            f"{3 * _EVERY + 1} --requests or more"
        )
    quarters = np.asarray(resident_mib[: 4 * size]).reshape(4, size)
    return {
        "resident_mib_by_quarter": np.median(quarters, axis=1).tolist(),
        "last_quarter_over_second": plain(ratio_interval(quarters[3], quarters[1])),
    }
