"""How much is asked, and what is kept of it? Bounds in requests and seconds, and values and shares of all parts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.kit.blocks import TimeBox
from benchmarks.serving.asking import Told
from benchmarks.serving.servers import Server
from chronostat.compare.statistics import median_interval, share_interval
from chronostat.records import plain
from chronostat.serving.log import read_requests

WARMING = 10  # requests that are asked first and left out
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the command line asked for.

    Attributes:
        controller: that counts in ``request_ms``.
        folder: where servers store requests.
        requests: of the part, or of each row of it.
        seconds: after which nothing more is asked.
        guidellm: the load generator's command; None: it was not found.
    """

    controller: Path
    folder: Path
    requests: int
    seconds: float
    guidellm: Path | None = None

    def in_time(self, items: Iterable[Item]) -> Iterator[Item]:
        """As many as begin within the seconds from now; the first one always does."""
        box = TimeBox(self.seconds)
        for number, item in enumerate(items):
            if number and not box.left_s():
                return
            yield item


def blocks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """In order, the last one shorter."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def stored(server: Server) -> dict[str, dict[str, Any]]:
    """What a server of ours has in its log, by the id of the request."""
    assert server.run is not None, "only ours keeps requests"
    return {row["id"]: row for row in read_requests(server.run).to_pylist()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median with its 95 % interval, and between what nine of ten values lie."""
    low, high = np.quantile(values, [0.05, 0.95]).tolist()
    return {"median": plain(median_interval(values)), "p5": low, "p95": high}


def raw(values: Iterable[float | None]) -> list[float | None]:
    """Values for the file, to a thousandth."""
    return [None if value is None else round(value, 3) for value in values]


def columns(told: Sequence[Told]) -> dict[str, list[Any]]:
    """What clients saw, a list of each kind in the order of asking; what only ours says is None of others."""
    said = [each.body.get("chronostat", {}) for each in told]
    return {
        "client_ms": raw(each.client_ms for each in told),
        "charged_ms": raw(each.get("charged_ms") for each in said),
        "queue_ms": raw(each.get("stages", {}).get("queue_ms") for each in said),
        "setting": [each.get("setting") for each in said],
        "meetable": [each.get("meetable") for each in said],
        "status": [each.status for each in told],
        "right": [each.right for each in told],
    }


def answers(told: Sequence[Told]) -> dict[str, Any]:
    """How many were answered, and the share that was answered rightly."""
    return {
        "asked": len(told),
        "answered": sum(each.status == 200 for each in told),
        "right": plain(share_interval(sum(each.right for each in told), len(told))),
    }


def kept(told: Sequence[Told], budget_ms: float) -> dict[str, Any]:
    """Shares of a deadline kept, by what the server charged and by what the client waited; no answer keeps none.

    The intervals take requests for independent of each other; under load those that queue together are not.
    """
    answered = [each for each in told if each.status == 200]
    charged = sum(each.body["chronostat"]["charged_ms"] <= budget_ms for each in answered)
    waited = sum(each.client_ms <= budget_ms for each in answered)
    return {
        **answers(told),
        "kept": plain(share_interval(charged, len(told))),
        "kept_as_the_client_waits": plain(share_interval(waited, len(told))),
        "meetable": _meetable([each.body["chronostat"] for each in answered], len(told)),
    }


def _meetable(said: Sequence[Mapping[str, Any]], asked: int) -> float | None:
    """Share of requests whose budget a setting was known to keep; None: the server has no choice and does not say."""
    known = [each["meetable"] for each in said if each["meetable"] is not None]
    return sum(known) / asked if known else None
