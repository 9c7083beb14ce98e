"""Bodies that are refused: each answer names the field, and none ends the server that goes on with the next one."""

import base64
import json
import socket
import struct
import zlib

import httpx2
import pytest

from chronostat.serving.log import read_requests
from stand_ins.serving import MODEL, WAIT_S, Scripted, data_url, picture_url, running

USER = {"role": "user", "content": "Hi"}
URL = "messages.0.content.0.image_url.url"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("run"), Scripted()) as server:
        yield server


def picture_of(url):
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def png_head(width, height):
    """A file whose head promises so many pixels, of which it holds none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    begin = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return begin + struct.pack(">I", 9) + b"IDAT"


WHOLE = base64.b64decode(picture_url().partition(",")[2])
BAD = [
    ({"foo": 1}, "foo", "unknown field foo; leave it out. Known fields of a request: budget_policy,"),
    ({"f" * 9_000: 1}, "f" * 120, "unknown field ffff"),
    ({"messages": None}, "messages", "valid array"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [USER] * 10_000}, "messages", "at most 1000 items"),
    ({"messages": [{**USER, "role": "tool"}]}, "messages.0.role", "'system', 'developer', 'user' or 'assistant'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "messages.0.content is missing"),
    ({"messages": [{**USER, "name": "x"}]}, "messages.0.name", "unknown field messages.0.name"),
    ({"messages": [{**USER, "content": 5}]}, "messages.0.content", "messages.0.content = 5"),
    ({"messages": [{**USER, "content": []}]}, "messages.0.content", "at least 1 item"),
    ({"messages": [{**USER, "content": [{"type": "video"}]}]}, "messages.0.content.0", "'text', 'image_url'"),
    ({"messages": [USER, {"role": "assistant", "content": "Yes"}]}, "messages.1.role", "it must be the user's"),
    (
        {"messages": [{**USER, "content": "a <image> b"}]},
        "messages.0.content",
        "holds '<image>', which this model takes",
    ),
    (
        {"messages": [{**USER, "content": "a" * 17_000}]},
        "messages",
        "17,000 characters of text, of which at most 16,384",
    ),
    ({"model": 5}, "model", "valid string"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": -3}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 2.5}, "max_tokens", "valid integer"),
    ({"max_tokens": "5"}, "max_tokens", "max_tokens = '5': Input should be a valid integer"),
    ({"max_tokens": 10**9}, "max_tokens", "this model's context holds 512 tokens"),
    ({"max_tokens": 10**40}, "max_tokens", "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "give one of them"),
    ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "min_tokens = 5 is more than the longest answer, 4"),
    ({"min_tokens": 5}, "min_tokens", "min_tokens needs max_completion_tokens"),
    ({"ignore_eos": True}, "ignore_eos", "ignore_eos needs max_completion_tokens"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": 1e-40}, "temperature", "give 0, which is greedy, or at least 1e-06"),
    ({"temperature": 3}, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"n": 2}, "n", "n = 2 is not offered here; leave it out, or give null or 1"),
    ({"n": True}, "n", "n = True is not offered"),
    ({"logprobs": True}, "logprobs", "give null or false"),
    ({"tools": [{"type": "function"}]}, "tools", "tools = [{'type': 'function'}] is not offered"),
    ({"response_format": {"type": "json_object"}}, "response_format", "is not offered"),
    ({"presence_penalty": 0.5}, "presence_penalty", "is not offered"),
    ({"stream": "yes"}, "stream", "valid boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "without stream = true"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field stream_options.x"),
    ({"latency_budget_ms": -5}, "latency_budget_ms", "greater than 0"),
    ({"latency_budget_ms": 0}, "latency_budget_ms", "greater than 0"),
    ({"latency_budget_ms": 1e12}, "latency_budget_ms", "less than or equal to 3600000"),
    ({"latency_budget_ms": "50"}, "latency_budget_ms", "valid number"),
    ({"latency_budget_kind": "mean"}, "latency_budget_kind", "without latency_budget_ms"),
    ({"budget_policy": "strict"}, "budget_policy", "without latency_budget_ms"),
    ({"latency_budget_ms": 5, "latency_budget_kind": "max"}, "latency_budget_kind", "'mean' or 'deadline'"),
    (picture_of("https://example.com/a.png"), URL, "begins with 'https': this server fetches nothing"),
    (picture_of("http://169.254.169.254/latest"), URL, "this server fetches nothing"),
    (picture_of("file:///etc/passwd"), URL, "this server fetches nothing"),
    (picture_of("/etc/passwd"), URL, "this server fetches nothing"),
    (
        picture_of("data:text/html;base64,PGI+"),
        URL,
        "is 'data:text/html;base64', which is no picture",
    ),
    (picture_of("data:image/png;base64,!!!!"), URL, "is not valid base64"),
    (picture_of(data_url(b"no picture")), URL, "is no picture that can be read"),
    (picture_of(data_url(WHOLE[:20])), URL, "is no picture that can be read"),
    (picture_of(data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), URL, "is no picture that can be read"),
    (picture_of(data_url(png_head(8_000, 8_000))), URL, "has 8000 x 8000 pixels; at most 40,000,000 pixels"),
    (picture_of(data_url(png_head(60_000, 60_000))), URL, "at most 40,000,000 pixels in all are taken"),
    (picture_of("data:image/png;base64," + "A" * 28_000_000), URL, "at most 20,971,520 bytes are taken"),
]


@pytest.mark.parametrize(("changed", "param", "said"), BAD, ids=[f"{i}-{param}" for i, (_, param, _) in enumerate(BAD)])
def test_a_bad_field_is_named_with_what_is_allowed(server, changed, param, said):
    body = {"model": MODEL, "messages": [USER], **changed}
    answer = httpx2.post(f"{server.address}/v1/chat/completions", json=body, timeout=WAIT_S)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert said in error["message"]
    assert len(error["message"]) < 700


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is no JSON"),
        (b"hello", "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        (b"[]", "the body = []"),
        (b"null", "the body = None"),
        (b"[" * 100_000, "the body is no JSON that can be read (Invalid JSON: recursion limit exceeded"),
        (b'{"model": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "recursion limit exceeded"),
        (b'{"model": "stand-in"}', "messages is missing"),
        (
            b'{"model": "stand-in", "latency_budget_ms": NaN, "messages": [{"role": "user", "content": "Hi"}]}',
            "finite number",
        ),
        (
            b'{"model": "stand-in", "latency_budget_ms": Infinity, "messages": [{"role": "user", "content": "Hi"}]}',
            "finite number",
        ),
        (
            b'{"model": "stand-in", "temperature": 1e999, "messages": [{"role": "user", "content": "Hi"}]}',
            "finite number",
        ),
    ],
)
def test_a_body_that_is_no_request_is_said(server, body, said):
    answer = httpx2.post(f"{server.address}/v1/chat/completions", content=body, timeout=WAIT_S)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "0", "fast", "1e12", "", "5, 6", "1_000", "1e999"])
def test_a_bad_budget_in_the_header_is_refused_and_not_left_out(server, value):
    answer = post(server, headers={"x-latency-budget-ms": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-latency-budget-ms")
    assert f"the header x-latency-budget-ms = {value!r}: give a number" in answer.json()["error"]["message"]


def test_a_header_that_is_sent_twice_is_not_half_dropped(server):
    body = json.dumps({"model": MODEL, "messages": [USER]})
    twice = [("content-type", "application/json"), ("x-latency-budget-ms", "60"), ("x-latency-budget-ms", "7")]
    answer = httpx2.post(f"{server.address}/v1/chat/completions", content=body, headers=twice, timeout=WAIT_S)
    assert "the header x-latency-budget-ms = '60, 7': give a number" in answer.json()["error"]["message"]


def test_a_budget_is_given_once(server):
    answer = post(server, headers={"x-latency-budget-ms": "60"}, latency_budget_ms=60)
    assert "are both given; give one" in answer.json()["error"]["message"]


def test_a_length_of_a_gigabyte_is_refused_before_it_is_read(server):
    host, port = server.address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10**9}\r\n\r\n"
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        connection.sendall(head.encode() + b"{")
        answer = b""
        while not answer.endswith(b"}}"):
            received = connection.recv(4096)
            assert received, answer
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body has 1,000,000,000 bytes; at most 33,554,432 are taken" in answer


def test_another_model_is_not_answered_for(server):
    answer = post(server, model="gpt-5")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "this server has 'stand-in'" in error["message"]


def test_too_many_pictures_are_refused(server):
    part = {"type": "image_url", "image_url": {"url": picture_url()}}
    answer = post(server, messages=[{"role": "user", "content": [part] * 17}])
    assert answer.json()["error"]["param"] == "messages.0.content.16.image_url.url"
    assert "at most 16 are taken" in answer.json()["error"]["message"]


def test_the_pixels_of_all_pictures_count_together(server):
    part = {"type": "image_url", "image_url": {"url": data_url(png_head(5_000, 5_000))}}
    answer = post(server, messages=[{"role": "user", "content": [part] * 2}])
    error = answer.json()["error"]
    assert error["param"] == "messages.0.content.1.image_url.url"
    assert (
        "has 5000 x 5000 pixels after 25,000,000 of other pictures; at most 40,000,000 pixels in all"
        in error["message"]
    )


def test_standard_fields_that_ask_for_nothing_are_accepted(server):
    neutral = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "logprobs": False}
    neutral |= {"top_logprobs": None, "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto"}
    neutral |= {"parallel_tool_calls": True, "user": "me", "store": False, "service_tier": "auto", "stream": None}
    answer = post(server, **neutral)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello world"


def test_after_all_of_them_the_next_request_is_answered(server):
    assert post(server).status_code == 200


def test_without_the_right_key_nothing_but_health_is_told(tmp_path):
    with running(tmp_path, Scripted(), keys=("secret", "other")) as server:
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/metrics"):
            assert httpx2.get(f"{server.address}{path}").status_code == 401
        assert httpx2.get(f"{server.address}/health").status_code == 200
        for sent in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"api-key": "secret"}):
            answer = post(server, headers=sent)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        right = {"authorization": "Bearer other"}
        assert post(server, headers=right).status_code == 200
        text = httpx2.get(f"{server.address}/metrics", headers=right).text
        assert '\nchronostat_refused_total{code="invalid_api_key",status="401"} 7.0\n' in text
        assert '\nchronostat_requests_total{status="401"} 7.0\n' in text
        assert "wrong" not in text
        assert server.told == ["requests without a right key so far: 1; /metrics counts them"]
    assert read_requests(server.run).column("status").to_pylist() == [200]  # whoever has no key fills no disk


def post(server, headers=None, **changed):
    body = json.dumps({"model": MODEL, "messages": [USER], **changed})
    head = {"content-type": "application/json", **(headers or {})}
    return httpx2.post(f"{server.address}/v1/chat/completions", content=body, headers=head, timeout=WAIT_S)
