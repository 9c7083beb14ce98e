"""A server on loopback whose answers come from no model; ports are picked by the system, and it ends with its test."""

import base64
import io
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import sleep

import torch
from fastapi import FastAPI
from PIL import Image

from chronostat.measure.clock import clock_for
from chronostat.records import Execution, LatencyMetric, Setting, StageTiming
from chronostat.serving.app import Offer, make_app
from chronostat.serving.keys import Keys
from chronostat.serving.line import Line
from chronostat.serving.log import RequestLog
from chronostat.serving.metrics import Gauges, Metrics
from chronostat.serving.renewing import Nothing
from chronostat.serving.server import Server, bound
from chronostat.serving.service import Service
from chronostat.wire.asks import Answered, Ask, AskedBudget, Piece
from chronostat.wire.errors import Refused
from chronostat.wire.images import Limits
from chronostat.wire.reading import Terms

WAIT_S = 30.0  # ends a hang, and nothing else
CHEAPEST_MS = 10.0
MODEL = "stand-in"


def until(so: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    for _ in range(round(WAIT_S / 0.001)):
        if so():
            return
        sleep(0.001)
    raise AssertionError("it did not happen")


@dataclass
class Scripted:
    """Stands where the model stands: answers with some pieces of text.

    Attributes:
        pieces: of every answer.
        raises: what answering raises, in place of the last piece.
        goes_on: answering waits for it before the last piece; set unless a test clears it.
        asked: what was asked, in the order of the answers.
        begun: set when an answer begins.
        left: requests whose clients went away while they were answered.
    """

    pieces: Sequence[str] = ("Hello", " world")
    raises: Exception | None = None
    goes_on: Event = field(default_factory=Event)
    asked: list[Ask] = field(default_factory=list)
    begun: Event = field(default_factory=Event)
    left: list[Ask] = field(default_factory=list)
    metric: LatencyMetric = "request_ms"

    def __post_init__(self) -> None:
        self.goes_on.set()

    def require_meetable(self, budget: AskedBudget) -> None:
        if budget.strict and budget.ms < CHEAPEST_MS:
            raise Refused(
                422, f"the cheapest needs {CHEAPEST_MS} ms", code="budget_unmeetable", param="latency_budget_ms"
            )

    def answer(self, ask: Ask, told: Callable[[Piece], None], gone: Callable[[], bool]) -> Answered:
        self.asked.append(ask)
        self.begun.set()
        *first, last = self.pieces
        for count, piece in enumerate(first, start=1):
            told(Piece(piece, 7, count))
        while not self.goes_on.wait(0.01):
            if gone():
                self.left.append(ask)
                break
        if self.raises is not None:
            raise self.raises
        told(Piece(last, 7, len(self.pieces)))
        return answered_with("".join(self.pieces), ask)


def answered_with(text: str, ask: Ask) -> Answered:
    """An answer of two tokens: 30 ms to the first, 10 ms to the second."""
    timing = StageTiming(
        source="measured",
        total_ms=41.0,
        new_tokens=2,
        decode_steps=1,
        ttft_ms=30.0,
        prefill_ms=28.0,
        vision_ms=12.0,
        llm_prefill_ms=15.0,
        decode_ms=10.0,
        decode_ms_per_token=10.0,
        other_ms=3.0,
    )
    execution = Execution(
        sample_id=ask.id,
        split="test",
        setting=Setting(vision_tokens=80),
        timing=timing,
        output_ids=(5, 6),
        preprocess_ms=4.0,
        controller_ms=1.0,
        prompt_tokens=7,
        image_tokens=3,
    )
    return Answered(
        text=text,
        finish="stop",
        execution=execution,
        metric="request_ms",
        queue_ms=2.0,
        image_ms=0.5,
        wall_ms=48.0,
        charged_ms=50.5,
        kept=None if ask.budget is None else ask.budget.ms >= 50.5,
        meetable=None,
        full_ms=100.0,
    )


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    app: FastAPI
    service: Service
    address: str
    run: Path
    end: Callable[[], None]
    told: Sequence[str]


@contextmanager
def running(
    run: Path,
    answerer: Scripted,
    *,
    most_waiting: int = 4,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    store_requests: bool = False,
) -> Generator[Running]:
    """A server that is ready; ended afterwards."""
    run.mkdir(parents=True, exist_ok=True)
    line = Line(most_waiting)
    gauges = Gauges(
        waiting=lambda: len(line),
        running=lambda: 0.0,
        kept_share=lambda: 1.0,
        full_s=lambda: 1.0,
        calibrated_s=lambda: 1.0,
    )
    metrics = Metrics(gauges)
    clock = clock_for(torch.device("cpu"))
    service = Service(answerer, line, RequestLog(run), count=metrics.count, keeper=Nothing(), clock=clock)
    terms = Terms(
        limits=limits or Limits(),
        marks=frozenset({"<image>"}),
        context_tokens=512,
        store_requests=store_requests,
    )
    told: list[str] = []
    who = Keys(keys, turned_away=metrics.count_refused, told=told.append)
    card = {"id": MODEL, "object": "model", "created": 1, "owned_by": "chronostat", "chronostat": {"setting": "full"}}
    app = make_app(service, metrics, Offer(model=MODEL, card=lambda: card, terms=terms, keys=who))
    server = Server(app, service)
    with bound("127.0.0.1", 0) as listening:
        service.start(failed=server.stop)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()

        def end() -> None:
            server.stop()
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the server did not end"

        try:
            until(lambda: service.state != "warming")
            yield Running(app, service, f"http://127.0.0.1:{listening.getsockname()[1]}", run, end, told)
        finally:
            answerer.goes_on.set()
            end()


def picture_url(width: int = 8, height: int = 8, form: str = "PNG") -> str:
    """A picture as requests bring it."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, format=form)
    return data_url(file.getvalue())


def data_url(content: bytes) -> str:
    """Bytes as requests bring them."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
