"""What can a server do? Each probe asks it once over HTTP and looks at what comes back."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from benchmarks.serving.asking import NEW_TOKENS, PATH, TIMEOUT_S, Question
from benchmarks.serving.servers import Server

_LOOSE_MS = 60_000.0


def takes_a_budget(server: Server, question: Question) -> bool:
    """A budget is taken, and the answer says whether it was kept."""
    answer = _post(server, question, latency_budget_ms=_LOOSE_MS)
    return answer.status_code == 200 and answer.json().get("chronostat", {}).get("kept") is True


def says_times(server: Server, question: Question) -> bool:
    """The answer brings the time to its first token."""
    return "time_to_first_token_ms" in _post(server, question).json().get("metrics", {})


def has_metrics(server: Server, question: Question) -> bool:
    """``GET /metrics`` is answered."""
    del question
    return httpx2.get(f"{server.address}/metrics", timeout=TIMEOUT_S).status_code == 200


def lists_its_model(server: Server, question: Question) -> bool:
    """``GET /v1/models`` names the model that is served."""
    del question
    answer = httpx2.get(f"{server.address}/v1/models", timeout=TIMEOUT_S)
    return answer.status_code == 200 and server.model in [model["id"] for model in answer.json()["data"]]


def ends_streams(server: Server, question: Question) -> bool:
    """A stream ends in ``data: [DONE]``."""
    return _post(server, question, stream=True).text.rstrip().endswith("data: [DONE]")


def explains_in_openais_words(server: Server, question: Question) -> bool:
    """A bad field is refused with a status of the client's and OpenAI's body, which names the field."""
    answer = _post(server, question, max_completion_tokens=0)
    if not 400 <= answer.status_code < 500:
        return False
    error = answer.json().get("error")
    return isinstance(error, dict) and error.get("param") == "max_completion_tokens"


PROBES: Mapping[str, Callable[[Server, Question], bool]] = {
    "a budget per request": takes_a_budget,
    "times in the answer": says_times,
    "GET /metrics": has_metrics,
    "its model in /v1/models": lists_its_model,
    "[DONE] at the end of a stream": ends_streams,
    "errors with OpenAI's body and the field": explains_in_openais_words,
}


def _post(server: Server, question: Question, **fields: Any) -> httpx2.Response:  # noqa: ANN401 - of the body
    asked = {"model": server.model, "messages": question.messages, "max_completion_tokens": NEW_TOKENS, **fields}
    return httpx2.post(f"{server.address}{PATH}", json=asked, timeout=TIMEOUT_S)
