# pyright: reportUnknownParameterType=false
# pyarrow comes without types.
"""One request as the log keeps it, and the columns of the table that it becomes."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from chronostat.runs.store.tables import EXECUTIONS, execution_row
from chronostat.wire.asks import Answered, Ask
from chronostat.wire.errors import Refused

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_OF_THE_EXECUTION = (
    *("setting", "knobs", "source", "unseen", "disturbed", "sampling_seed", "preprocess_ms", "controller_ms"),
    *("total_ms", "request_ms", "ttft_ms", "prefill_ms", "vision_ms", "projector_ms", "llm_prefill_ms"),
    *("prefill_rest_ms", "decode_ms", "decode_ms_per_token", "other_ms", "new_tokens", "decode_steps"),
    *("prompt_tokens", "image_tokens"),
)
REQUESTS = pa.schema(
    {
        "record": _WHOLE,
        "id": _TEXT,
        "received": _TEXT,
        "status": _WHOLE,
        "code": _TEXT,
        "metric": _TEXT,
        "budget_ms": _REAL,
        "budget_kind": _TEXT,
        "budget_policy": _TEXT,
        "meetable": _FLAG,
        "kept": _FLAG,
        "charged_ms": _REAL,
        "queue_ms": _REAL,
        "image_ms": _REAL,
        "wall_ms": _REAL,
        "full_ms": _REAL,
        "images": _WHOLE,
        "temperature": _REAL,
        "top_p": _REAL,
        "finish": _TEXT,
        **{name: EXECUTIONS.field(name).type for name in _OF_THE_EXECUTION},
        "messages": _TEXT,
        "answer": _TEXT,
    }
)
_ANSWERED = ("metric", "finish", "meetable", "kept", "charged_ms", "queue_ms", "image_ms", "wall_ms", "full_ms")
GONE = 499  # the client went away before its answer was complete


@dataclass(frozen=True, kw_only=True)
class Served:
    """What became of one request.

    Attributes:
        id: of the request.
        received: when, in UTC.
        ask: None: it could not be read.
        outcome: what it was answered with; None: its client went away while it waited.
        gone: its client went away.
    """

    id: str
    received: str
    ask: Ask | None
    outcome: Answered | Refused | None
    gone: bool = False

    @property
    def status(self) -> int:
        """Of HTTP; ``GONE`` where nobody was there to read it."""
        if self.gone or self.outcome is None:
            return GONE
        return self.outcome.status if isinstance(self.outcome, Refused) else 200

    def row(self, number: int) -> dict[str, Any]:
        """As a row of the table, plain data; what is absent is None."""
        row: dict[str, Any] = dict.fromkeys(REQUESTS.names)
        row |= {"record": number, "id": self.id, "received": self.received, "status": self.status}
        return row | self._asked() | self._came_to()

    def _asked(self) -> dict[str, Any]:
        ask = self.ask
        if ask is None:
            return {}
        row: dict[str, Any] = {"images": len(ask.images), "messages": ask.messages}
        if ask.sampling is not None:
            row |= {"temperature": ask.sampling.temperature, "top_p": ask.sampling.top_p}
        if ask.budget is not None:
            policy = "strict" if ask.budget.strict else "best_effort"
            row |= {"budget_ms": ask.budget.ms, "budget_kind": ask.budget.kind, "budget_policy": policy}
        return row

    def _came_to(self) -> dict[str, Any]:
        outcome = self.outcome
        if isinstance(outcome, Refused):
            return {"code": outcome.code}
        if outcome is None:
            return {}
        executed = execution_row(outcome.execution)
        kept = self.ask is not None and self.ask.messages is not None
        return {
            **{name: getattr(outcome, name) for name in _ANSWERED},
            **{name: executed[name] for name in _OF_THE_EXECUTION},
            "answer": outcome.text if kept else None,
        }
