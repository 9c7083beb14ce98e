"""The routes: what comes in over HTTP becomes a job in the line, and what it comes to goes out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from chronostat.serving.arriving import Held, Take, body_of
from chronostat.serving.keys import Keys
from chronostat.serving.line import Job
from chronostat.serving.metrics import Metrics
from chronostat.serving.served import GONE, Served
from chronostat.serving.service import Service, now
from chronostat.wire.asks import Answered, Ask, Piece
from chronostat.wire.bodies import Head, error_event, usage_of
from chronostat.wire.errors import Refused, bad
from chronostat.wire.protocol import ChatRequest, StreamOptions, read_request
from chronostat.wire.reading import Terms, ask_of

Event = Piece | Answered | Refused


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a server offers.

    Attributes:
        model: by which requests name it.
        card: what ``/v1/models`` says of it now.
        keys: that let a request in.
    """

    model: str
    card: Callable[[], Mapping[str, Any]]
    terms: Terms
    keys: Keys


def make_app(service: Service, metrics: Metrics, offer: Offer) -> FastAPI:
    """The application; whoever runs it starts and ends the service."""
    app = FastAPI(title="chronostat", docs_url=None, redoc_url=None, openapi_url=None)
    routes = _Routes(service, metrics, offer)  # they read their requests themselves: no dependencies to be solved
    app.add_route("/v1/chat/completions", routes.chat, methods=["POST"])
    app.add_route("/v1/models", routes.models, methods=["GET"])
    app.add_route("/v1/models/{model:path}", routes.one_model, methods=["GET"])
    app.add_route("/health", routes.health, methods=["GET"])
    app.add_route("/metrics", routes.metrics, methods=["GET"])
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _unforeseen)
    return app


class _Routes:
    def __init__(self, service: Service, metrics: Metrics, offer: Offer) -> None:
        self._service, self._metrics, self._offer, self._keys = service, metrics, offer, offer.keys
        self._held = Held(offer.terms.limits.unanswered, lambda: service.line.retry_after_s)

    async def chat(self, request: Request) -> Response:
        """One request."""
        self._keys.require(request.headers)
        with self._held.one() as take:
            joined = await self._join(request, take)
            first = await self._first(request, joined)
        if first is None:
            return Response(status_code=GONE)
        if isinstance(first, Refused):
            raise first
        if joined.stream:
            return StreamingResponse(self._stream(joined, first), media_type="text/event-stream")
        assert isinstance(first, Answered), "no pieces are told where none are streamed"
        return Response(joined.head.completion(first), media_type="application/json")

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._keys.require(request.headers)
        return JSONResponse({"object": "list", "data": [self._offer.card()]})

    async def one_model(self, request: Request) -> Response:
        """The same by name."""
        self._keys.require(request.headers)
        self._require_model(request.path_params["model"])
        return JSONResponse(self._offer.card())

    async def health(self, request: Request) -> Response:
        """200 once every setting is warm."""
        del request
        state = self._service.state
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        self._keys.require(request.headers)
        return Response(self._metrics.text(), media_type=self._metrics.content_type)

    def _require_model(self, model: str) -> None:
        if model != self._offer.model:
            raise Refused(
                404,
                f"the model {model[:80]!r} does not exist here; this server has {self._offer.model!r}",
                code="model_not_found",
                param="model",
            )

    async def _join(self, request: Request, take: Take) -> "_Joined":
        """Read a request and put it into the line; one that is refused is logged too.

        Raises:
            Refused: it cannot be read, or there is no place for it.
        """
        received_ns, received = self._service.clock.host_ns(), now()
        id_, created = f"chatcmpl-{uuid4().hex}", int(datetime.now(UTC).timestamp())
        ask: Ask | None = None
        try:
            asked = await self._read(request, take)
            ask = ask_of(asked, _headers(request), self._offer.terms, id=id_, received_ns=received_ns)
            events: asyncio.Queue[Event] = asyncio.Queue()
            post = _poster(events)
            job = Job(ask=ask, received=received, told=post if asked.stream else lambda _: None, done=post)
            self._service.join(job)
        except Refused as refused:
            self._service.note(Served(id=id_, received=received, ask=ask, outcome=refused))
            raise
        head = Head(id=id_, created=created, model=self._offer.model, budget=ask.budget)
        options = asked.stream_options or StreamOptions()
        return _Joined(stream=bool(asked.stream), options=options, head=head, job=job, events=events)

    async def _read(self, request: Request, take: Take) -> ChatRequest:
        asked = read_request(await body_of(request, self._offer.terms.limits, take))
        self._require_model(asked.model)
        if asked.stream_options is not None and not asked.stream:
            said = "stream_options is given without stream = true; give that too, or leave it out"
            raise bad("stream_options", said)
        return asked

    async def _first(self, request: Request, joined: "_Joined") -> Event | None:
        """What comes first; None: the client is gone. Until then nothing is sent, so an error has its own status."""
        event = asyncio.ensure_future(joined.events.get())
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                return event.result()
            self._service.leave(joined.job)
            return None
        finally:
            for task in (event, gone):
                task.cancel()

    async def _stream(self, joined: "_Joined", first: Event) -> AsyncIterator[bytes]:
        """Server-sent events; a client that goes away meanwhile leaves the line."""
        head, options = joined.head, joined.options
        event, ended = first, False
        try:
            yield head.chunk({"role": "assistant", "content": ""})
            while isinstance(event, Piece):
                so_far = usage_of(event.prompt_tokens, event.new_tokens) if options.continuous_usage_stats else None
                yield head.chunk({"content": event.text}, usage=so_far)
                event = await joined.events.get()
            ended = True
            if isinstance(event, Refused):
                yield error_event(event.body())
            else:
                yield head.last(event, include_usage=options.include_usage)
        finally:
            if not ended:
                self._service.leave(joined.job)


@dataclass(frozen=True, kw_only=True)
class _Joined:
    """A request in the line, and what comes of it; its body is not kept."""

    stream: bool
    options: StreamOptions
    head: Head
    job: Job
    events: "asyncio.Queue[Event]"


def _poster(events: "asyncio.Queue[Event]") -> Callable[[Event], None]:
    """Hands on from the worker's thread."""
    loop = asyncio.get_running_loop()

    def post(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    return post


def _headers(request: Request) -> dict[str, str]:
    """Those of one name joined, as HTTP has it: the second one is not dropped."""
    return {name: ", ".join(request.headers.getlist(name)) for name in request.headers}


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refused)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"there is no {request.method} {request.url.path[:80]} here; there is POST /v1/chat/completions, GET "
    said += "/v1/models, /health and /metrics"
    return await _refused(request, Refused(error.status_code, said, code="unknown_url"))


async def _unforeseen(request: Request, error: Exception) -> Response:
    said = f"the server made a mistake ({type(error).__name__}); its own output says more"
    return await _refused(request, Refused(500, said, code="server_error"))
