"""What is asked, and how is it timed? Questions of the bundled task, from before a request is sent to its last byte."""

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from time import perf_counter
from typing import Any

import httpx2
import numpy as np

from benchmarks.serving.servers import Server
from chronostat.data.demo import DemoTask
from chronostat.data.samples import Sample

PATH, NO_PATH = "/v1/chat/completions", "/v1/nothing"
HEAD = {"content-type": "application/json"}
NEW_TOKENS = 8
TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a client saw of one request.

    Attributes:
        client_ms: from before it was sent to the last byte of its answer.
        body: the answer, or the error.
        right: whether the answer is one of the references.
    """

    client_ms: float
    status: int
    body: dict[str, Any]
    right: bool

    @property
    def id(self) -> str:
        """Of the answer."""
        return self.body["id"]


@dataclass(frozen=True)
class Question:
    """A sample as a body, made beforehand."""

    sample: Sample
    messages: Sequence[dict[str, Any]]

    def body(self, server: Server, budget_ms: float | None) -> bytes:
        """For a server; the budget is named to ours alone."""
        named = {} if budget_ms is None else {"latency_budget_ms": budget_ms}
        asked = {"model": server.model, "messages": self.messages, "max_completion_tokens": NEW_TOKENS, **named}
        return json.dumps(asked).encode()


def questions(count: int) -> list[Question]:
    """Samples of the test split of the bundled task."""
    return [Question(sample, [{"role": "user", "content": _content(sample)}]) for sample in _first(count)]


def _first(count: int) -> Sequence[Sample]:
    return DemoTask().split("test")[:count]


def _content(sample: Sample) -> list[dict[str, Any]]:
    file = io.BytesIO()
    sample.load_images()[0].save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sample.prompt}]


class Client:
    """One connection to a server, one request at a time; of the standard library, which takes the least time itself.

    Raises:
        OSError: the server is gone.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = HTTPConnection(server.address.removeprefix("http://"), timeout=TIMEOUT_S)

    def ask(self, question: Question, budget_ms: float | None = None) -> Told:
        """Ask, and wait for the answer."""
        return _told(question, *self._post(PATH, question.body(self._server, budget_ms)))

    def nothing_ms(self, question: Question) -> float:
        """The same bytes to a path that there is none of: what client, sockets and HTTP server take themselves."""
        status, _, client_ms = self._post(NO_PATH, question.body(self._server, None))
        assert status == 404, f"{NO_PATH} is answered with {status}"
        return client_ms

    def _post(self, path: str, body: bytes) -> tuple[int, bytes, float]:
        """Status, content, and milliseconds from before it is sent to the last byte."""
        start_s = perf_counter()
        self._connection.request("POST", path, body, HEAD)
        answer = self._connection.getresponse()
        content = answer.read()
        return answer.status, content, (perf_counter() - start_s) * 1e3


def poisson(
    server: Server, asked: Sequence[Question], *, per_s: float, budget_ms: float | None, seed: int
) -> list[Told]:
    """Ask each at a moment of its own, whatever the server does meanwhile.

    Args:
        server: that is asked.
        asked: in this order.
        per_s: mean number of arrivals in a second; the gaps are exponential.
        budget_ms: of each.
        seed: of the gaps.
    """
    gaps_s = np.random.default_rng(seed).exponential(1 / per_s, len(asked))

    async def one(client: httpx2.AsyncClient, question: Question, after_s: float) -> Told:
        await asyncio.sleep(after_s)
        start_s = perf_counter()
        url = f"{server.address}{PATH}"
        answer = await client.post(url, content=question.body(server, budget_ms), headers=HEAD)
        return _told(question, answer.status_code, answer.content, (perf_counter() - start_s) * 1e3)

    async def every() -> list[Told]:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
            moments_s = np.cumsum(gaps_s).tolist()
            return await asyncio.gather(*(one(client, *each) for each in zip(asked, moments_s, strict=True)))

    return asyncio.run(every())


def _told(question: Question, status: int, content: bytes, client_ms: float) -> Told:
    body = json.loads(content)
    said = body["choices"][0]["message"]["content"] if status == 200 else None
    right = said is not None and said.strip() in question.sample.references
    return Told(client_ms=client_ms, status=status, body=body, right=right)
