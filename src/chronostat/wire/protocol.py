"""The body of ``POST /v1/chat/completions``: read strictly, so that nothing a client asks for is dropped in silence."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from chronostat.records import BudgetKind
from chronostat.wire.errors import Refused, bad

MOST_MESSAGES = 1_000
MOST_PARTS = 256
MOST_BUDGET_MS = 3_600_000.0

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "prompt_cache_key": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""Standard fields that are accepted where they ask for nothing, with the values that do."""


_MOST_SHOWN = 120  # characters of a field's name in an answer
_BRANCHES = frozenset({"str", "text", "image_url"})


class _Strict(BaseModel):
    """No unknown field, no text for a number, neither NaN nor infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ImageUrl(_Strict):
    """A picture inside the request. ``detail`` cannot be chosen: the setting decides how much is read."""

    url: str
    detail: Literal["auto"] | None = None


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=MOST_PARTS)]


class StreamOptions(_Strict):
    """What a stream says beside the answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(_Strict):
    """The fields that are read; all others are refused by name, or accepted where they ask for nothing."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    latency_budget_ms: Annotated[float, Field(gt=0, le=MOST_BUDGET_MS)] | None = None
    latency_budget_kind: BudgetKind | None = None
    budget_policy: Literal["best_effort", "strict"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_neutral_out(cls, data: object) -> object:
        """Refuse what asks for something that is not offered; leave out what asks for nothing."""
        if not isinstance(data, Mapping):
            return data
        fields = cast("Mapping[str, object]", data)
        for name in NEUTRAL.keys() & fields.keys():
            if not any(_same(fields[name], each) for each in NEUTRAL[name]):
                raise _NotOfferedError(name, fields[name])
        return {name: value for name, value in fields.items() if name not in NEUTRAL}


class _NotOfferedError(Exception):
    def __init__(self, name: str, value: object) -> None:
        super().__init__(name)
        self.name = name
        self.value = value


def _same(value: object, neutral: object) -> bool:
    """Equal, and no truth value in the place of a number."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def read_request(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        Refused: it is no JSON, or a field is unknown, missing or not allowed; names it.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except _NotOfferedError as error:
        allowed = " or ".join(json.dumps(value) for value in NEUTRAL[error.name])
        raise bad(
            error.name,
            f"{error.name} = {_shown(error.value)} is not offered here; leave it out, or give {allowed}",
            code="unsupported_parameter",
        ) from None
    except ValidationError as error:
        raise _refusal(_telling(error.errors(include_url=False, include_context=False))) from None


def _telling(problems: Sequence[ErrorDetails]) -> ErrorDetails:
    """Of the problems of the first wrong field the one that says most: deep inside, or about more than a type.

    A value that may be text or a list has one problem with each.
    """
    field = problems[0]["loc"][:1]
    of_it = [problem for problem in problems if problem["loc"][:1] == field]
    return max(of_it, key=lambda problem: (len(problem["loc"]), not problem["type"].endswith("_type")))


def _refusal(problem: ErrorDetails) -> Refused:
    """A problem in words."""
    param = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))[:_MOST_SHOWN] or None
    kind, said = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return bad(None, f"the body is no JSON that can be read ({said}); send one object", code="invalid_json")
    if kind == "extra_forbidden":
        known = ", ".join(sorted(ChatRequest.model_fields))
        message = f"unknown field {param}; leave it out. Known fields of a request: {known}"
        return bad(param, message, code="unknown_parameter")
    if kind == "missing":
        return bad(param, f"{param} is missing; give it", code="missing_required_parameter")
    return bad(param, f"{param or 'the body'} = {_shown(problem['input'])}: {said}")


def _is_branch(part: int | str) -> bool:
    """Whether a part of a location names a branch of a union and no field."""
    return isinstance(part, str) and (part in _BRANCHES or part.startswith(("list[", "constrained-")))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
