"""What ``GET /metrics`` says, in vLLM's words behind our own prefix: dashboards need one name changed."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chronostat.serving.served import Served
from chronostat.wire.asks import Answered
from chronostat.wire.errors import Refused

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_PREFIX = "chronostat"
_TIMES = {
    "e2e_request_latency_seconds": "From receipt to the end of generation.",
    "request_queue_time_seconds": "From receipt to the request's turn.",
    "time_to_first_token_seconds": "From the request's turn to its first token.",
    "request_prefill_time_seconds": "Image encoding and prefill forward.",
    "request_vision_time_seconds": "The vision tower.",
    "request_decode_time_seconds": "From the first token to the last.",
    "inter_token_latency_seconds": "Mean time between tokens.",
}


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """What is read whenever somebody asks.

    Attributes:
        waiting: requests in the line.
        running: whether one is being answered.
        kept_share: of the deadlines since the last calibration; NaN: none yet.
        full_s: what ``full`` takes as budgets are counted; NaN: no controller.
        calibrated_s: when the controller was calibrated last, since 1970; NaN: never.
    """

    waiting: Callable[[], float]
    running: Callable[[], float]
    kept_share: Callable[[], float]
    full_s: Callable[[], float]
    calibrated_s: Callable[[], float]


class Metrics:
    """Counted over the life of one server."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, gauges: Gauges) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("requests", "Requests by status.", ["status"], namespace=_PREFIX, registry=registry)
        self._refused = Counter(
            "refused",
            "Requests without an answer, by status and reason.",
            ["status", "code"],
            namespace=_PREFIX,
            registry=registry,
        )
        self._settings = Counter("settings", "Answers by setting.", ["setting"], namespace=_PREFIX, registry=registry)
        self._deadlines = Counter(
            "deadlines",
            "Answers under a deadline.",
            ["kept"],
            namespace=_PREFIX,
            registry=registry,
        )
        self._prompt = Counter(
            "prompt_tokens", "Tokens of prompts, images among them.", namespace=_PREFIX, registry=registry
        )
        self._new = Counter("generation_tokens", "Tokens of answers.", namespace=_PREFIX, registry=registry)
        self._times = {
            name: Histogram(name, said, buckets=_SECONDS, namespace=_PREFIX, registry=registry)
            for name, said in _TIMES.items()
        }
        for name, said, read in (
            ("num_requests_waiting", "Requests in the line.", gauges.waiting),
            ("num_requests_running", "Requests being answered: 0 or 1.", gauges.running),
            ("deadlines_kept_share", "Of the answers since the last calibration.", gauges.kept_share),
            ("full_seconds", "Latency of full as budgets are counted.", gauges.full_s),
            ("calibrated_timestamp_seconds", "When the controller was calibrated last.", gauges.calibrated_s),
        ):
            Gauge(name, said, namespace=_PREFIX, registry=registry).set_function(read)

    def count(self, served: Served) -> None:
        """Take one request."""
        if isinstance(served.outcome, Refused) and not served.gone:
            self.count_refused(served.outcome)
            return
        self._requests.labels(str(served.status)).inc()
        if isinstance(served.outcome, Answered) and not served.gone:
            self._count(served.outcome)

    def count_refused(self, refused: Refused) -> None:
        """Take one request that was refused, also before it was read."""
        self._requests.labels(str(refused.status)).inc()
        self._refused.labels(str(refused.status), refused.code).inc()

    def text(self) -> bytes:
        """In the format of Prometheus."""
        return generate_latest(self._registry)

    def _count(self, answered: Answered) -> None:
        execution, timing = answered.execution, answered.execution.timing
        assert timing is not None, "an answer was measured"
        self._settings.labels(str(execution.setting)).inc()
        if answered.kept is not None:
            self._deadlines.labels(str(answered.kept).lower()).inc()
        self._prompt.inc(execution.prompt_tokens or 0)
        self._new.inc(timing.new_tokens)
        took_ms = {
            "e2e_request_latency_seconds": answered.queue_ms + answered.image_ms + answered.wall_ms,
            "request_queue_time_seconds": answered.queue_ms,
            "time_to_first_token_seconds": answered.first_token_ms,
            "request_prefill_time_seconds": timing.prefill_ms,
            "request_vision_time_seconds": timing.vision_ms,
            "request_decode_time_seconds": timing.decode_ms,
            "inter_token_latency_seconds": timing.decode_ms_per_token,
        }
        for name, ms in took_ms.items():
            if ms is not None:
                self._times[name].observe(ms / 1e3)
