"""From a request's body and headers to what the worker is given."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chronostat.records.messages import Role, Turn
from chronostat.wire.asks import Ask, AskedBudget, Sampling
from chronostat.wire.errors import Refused, bad
from chronostat.wire.images import Limits, Picture, picture
from chronostat.wire.protocol import MOST_BUDGET_MS, ChatRequest, ImagePart, Message, TextPart

BUDGET_HEADER = "x-latency-budget-ms"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # as JSON writes it: no 1_000, which float() takes
_MOST_CHARACTERS = 32  # of a token
_LEAST_TEMPERATURE = 1e-6  # what a model says is divided by it, and by much less becomes infinite
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What this server takes.

    Attributes:
        marks: texts that the processor takes for a part of an image wherever they stand.
        context_tokens: that the model's context holds.
        store_requests: whether messages are kept in the log.
    """

    limits: Limits
    marks: frozenset[str]
    context_tokens: int
    store_requests: bool = False


def ask_of(request: ChatRequest, headers: Mapping[str, str], terms: Terms, *, id: str, received_ns: int) -> Ask:
    """The request as the worker is given it.

    Raises:
        Refused: a value is not allowed; names its field.
    """
    turns, images = _conversation(request.messages, terms)
    new_tokens = _new_tokens(request, terms.context_tokens)
    return Ask(
        id=id,
        received_ns=received_ns,
        turns=turns,
        images=images,
        new_tokens=new_tokens,
        least_tokens=_least_tokens(request, new_tokens),
        sampling=_sampling(request),
        seed=request.seed,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        budget=_budget(request, headers),
        messages=json.dumps([each.model_dump() for each in request.messages]) if terms.store_requests else None,
    )


def _conversation(messages: Sequence[Message], terms: Terms) -> tuple[tuple[Turn, ...], tuple[bytes, ...]]:
    if messages[-1].role != "user":
        raise bad(
            f"messages.{len(messages) - 1}.role",
            f"the last message is the {messages[-1].role}'s; it must be the user's, whom the model answers",
        )
    pictures: list[Picture] = []
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}.content"
        content = message.content
        if isinstance(content, str):
            parts: list[str | int] = [_checked(content, where, terms)]
        else:
            parts = [_part(part, f"{where}.{place}", pictures, terms) for place, part in enumerate(content)]
        turns.append(Turn(role=_ROLES[message.role], parts=tuple(parts)))
    said = sum(len(turn.text) for turn in turns)
    most = _MOST_CHARACTERS * terms.context_tokens
    if said > most:  # counting its tokens would take long
        raise too_long(f"{said:,} characters of text, of which at most {most:,} are read", terms.context_tokens)
    return tuple(turns), tuple(each.content for each in pictures)


def too_long(what: str, context_tokens: int) -> Refused:
    """A request that the model's context does not hold."""
    return bad(
        "messages",
        f"messages have {what}; this model's context holds {context_tokens:,} tokens, send less",
        code="context_length_exceeded",
    )


def _part(part: TextPart | ImagePart, where: str, pictures: list[Picture], terms: Terms) -> str | int:
    """Text, or the number of a picture, which is added to those before it."""
    if isinstance(part, TextPart):
        return _checked(part.text, f"{where}.text", terms)
    param, limits = f"{where}.image_url.url", terms.limits
    if len(pictures) == limits.images:
        raise bad(param, f"{param} is one picture too many; at most {limits.images} are taken")
    pictures.append(picture(part.image_url.url, param, limits, before=sum(each.pixels for each in pictures)))
    return len(pictures) - 1


def _checked(text: str, param: str, terms: Terms) -> str:
    """Text that the processor takes for text."""
    mark = next((mark for mark in terms.marks if mark in text), None)
    if mark is not None:
        raise bad(param, f"{param} holds {mark!r}, which this model takes for a part of an image; take it out")
    return text


def _new_tokens(request: ChatRequest, most: int) -> int | None:
    given = {
        name: value for name in ("max_completion_tokens", "max_tokens") if (value := getattr(request, name)) is not None
    }
    if len(set(given.values())) > 1:
        raise bad("max_tokens", f"{given}: they name one length; give one of them")
    for name, value in given.items():
        if value > most:
            raise bad(name, f"{name} = {value}: this model's context holds {most} tokens; ask for at most that")
        return value
    return None


def _least_tokens(request: ChatRequest, new_tokens: int | None) -> int:
    least = request.min_tokens or 0
    if new_tokens is None and (request.ignore_eos or least):
        param = "ignore_eos" if request.ignore_eos else "min_tokens"
        raise bad(param, f"{param} needs max_completion_tokens, which says how long the answer becomes; give it too")
    if new_tokens is not None and least > new_tokens:
        raise bad(
            "min_tokens", f"min_tokens = {least} is more than the longest answer, {new_tokens}; give at most that"
        )
    return least if new_tokens is None or not request.ignore_eos else new_tokens


def _sampling(request: ChatRequest) -> Sampling | None:
    """Temperature 0 is greedy; a share of the probability without a temperature is drawn from at 1.

    Raises:
        Refused: the temperature is above 0 and too low to draw at.
    """
    temperature, top_p = request.temperature, request.top_p
    if temperature is None and top_p in {None, 1.0}:
        return None
    if temperature is not None and 0 < temperature < _LEAST_TEMPERATURE:
        raise bad(
            "temperature",
            f"temperature = {temperature:g}: no probabilities come of it; give 0, which is greedy, or at least "
            f"{_LEAST_TEMPERATURE:g}",
        )
    return Sampling(temperature=1.0 if temperature is None else temperature, top_p=1.0 if top_p is None else top_p)


def _budget(request: ChatRequest, headers: Mapping[str, str]) -> AskedBudget | None:
    said = headers.get(BUDGET_HEADER)
    ms = request.latency_budget_ms
    if said is not None:
        if ms is not None:
            raise bad(BUDGET_HEADER, f"latency_budget_ms and the header {BUDGET_HEADER} are both given; give one")
        ms = _from_header(said)
    if ms is None:
        for name in ("latency_budget_kind", "budget_policy"):
            if getattr(request, name) is not None:
                raise bad(name, f"{name} is given without latency_budget_ms; give that too, or leave {name} out")
        return None
    return AskedBudget(ms=ms, kind=request.latency_budget_kind or "deadline", strict=request.budget_policy == "strict")


def _from_header(said: str) -> float:
    ms = float(said) if _NUMBER.fullmatch(said) else 0.0
    if not 0 < ms <= MOST_BUDGET_MS:
        raise bad(
            BUDGET_HEADER,
            f"the header {BUDGET_HEADER} = {said[:40]!r}: give a number of milliseconds above 0 and at most "
            f"{MOST_BUDGET_MS:.0f}",
        )
    return ms
