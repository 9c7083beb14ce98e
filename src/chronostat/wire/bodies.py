"""Answers as OpenAI's clients read them, with what was measured beside: vLLM's names, and our own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from chronostat.wire.asks import Answered, AskedBudget

DONE = b"data: [DONE]\n\n"
_STAGES = (
    *("ttft_ms", "prefill_ms", "vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms"),
    *("decode_ms", "decode_ms_per_token", "other_ms", "total_ms"),
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every body of one request says.

    Attributes:
        created: seconds since 1970.
    """

    id: str
    created: int
    model: str
    budget: AskedBudget | None = None

    def completion(self, answered: Answered) -> bytes:
        """The whole answer."""
        message = {"role": "assistant", "content": answered.text}
        choice = {"index": 0, "message": message, "finish_reason": answered.finish, "logprobs": None}
        body = ChatCompletion.model_validate(
            {**self._head("chat.completion"), "choices": [choice], "usage": usage(answered), **self._measured(answered)}
        )
        return body.model_dump_json(exclude_unset=True).encode()

    def chunk(self, delta: Mapping[str, str], *, usage: Mapping[str, int] | None = None) -> bytes:
        """A piece of the answer."""
        return self._event([_choice(delta, None)], {"usage": usage} if usage else {})

    def last(self, answered: Answered, *, include_usage: bool) -> bytes:
        """What ends a stream: the reason, what was measured, and usage in a chunk of its own where it is asked for."""
        measured, end = self._measured(answered), [_choice({}, answered.finish)]
        if not include_usage:
            return self._event(end, measured) + DONE
        return self._event(end, {}) + self._event([], {"usage": usage(answered), **measured}) + DONE

    def _event(self, choices: list[dict[str, Any]], more: Mapping[str, Any]) -> bytes:
        body = ChatCompletionChunk.model_validate({**self._head("chat.completion.chunk"), "choices": choices, **more})
        return b"data: " + body.model_dump_json(exclude_unset=True).encode() + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _measured(self, answered: Answered) -> dict[str, Any]:
        return {"metrics": metrics_of(answered), "chronostat": self._chronostat(answered)}

    def _chronostat(self, answered: Answered) -> dict[str, Any]:
        execution, timing, budget = answered.execution, answered.execution.timing, self.budget
        assert timing is not None, "an answer was measured"
        return {
            "setting": str(execution.setting),
            "budget": None if budget is None else {"ms": budget.ms, "kind": budget.kind},
            "charged_ms": answered.charged_ms,
            "kept": answered.kept,
            "meetable": answered.meetable,
            "metric": answered.metric,
            "source": timing.source,
            "unseen": timing.unseen,
            "disturbed": execution.disturbed,
            "sampling_seed": execution.sampling_seed,
            "stages": {
                "queue_ms": answered.queue_ms,
                "image_ms": answered.image_ms,
                "controller_ms": execution.controller_ms,
                "preprocess_ms": execution.preprocess_ms,
                **{name: getattr(timing, name) for name in _STAGES},
            },
        }


def usage(answered: Answered) -> dict[str, int]:
    """Tokens of prompt and answer; those of images count in the prompt as many as the model read."""
    execution = answered.execution
    return usage_of(execution.prompt_tokens or 0, len(execution.output_ids))


def usage_of(prompt: int, new: int) -> dict[str, int]:
    """The same by number."""
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new).model_dump(
        exclude_unset=True
    )


def metrics_of(answered: Answered) -> dict[str, float | None]:
    """By vLLM's names; an answer of one token has no time between tokens, and none per second."""
    timing = answered.execution.timing
    assert timing is not None, "an answer was measured"
    per_token_ms = timing.decode_ms_per_token
    return {
        "time_to_first_token_ms": answered.first_token_ms,
        "generation_time_ms": timing.decode_ms,
        "queue_time_ms": answered.queue_ms,
        "mean_itl_ms": per_token_ms,
        "tokens_per_second": None if per_token_ms is None else 1e3 / per_token_ms,
    }


def error_event(body: Mapping[str, Any]) -> bytes:
    """An error after a stream has begun."""
    return b"data: " + json.dumps(body).encode() + b"\n\n" + DONE


def _choice(delta: Mapping[str, str], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
