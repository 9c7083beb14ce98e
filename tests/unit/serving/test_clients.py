"""What clients of OpenAI see of a server, over real connections on loopback."""

import asyncio
import json
import subprocess
from contextlib import asynccontextmanager

import httpx2
import openai
import pytest

from chronostat.serving.log import read_requests
from chronostat.wire.errors import Refused
from chronostat.wire.images import Limits
from stand_ins.serving import MODEL, WAIT_S, Scripted, picture_url, running, until

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def scripted():
    return Scripted()


@pytest.fixture
def server(tmp_path, scripted):
    with running(tmp_path / "run", scripted) as server:
        yield server


def client_of(server, **options):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=WAIT_S, **options)


def statuses(server):
    return read_requests(server.run).column("status").to_pylist()


def test_an_answer_with_what_was_measured(server, scripted):
    answer = client_of(server).chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture_url()}},
                    {"type": "text", "text": "What?"},
                ],
            },
        ],
        max_completion_tokens=5,
        extra_body={"latency_budget_ms": 60},
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello world", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)
    assert answer.metrics == {
        "time_to_first_token_ms": 37.5,  # 0.5 + 48 - 41 + 30
        "generation_time_ms": 10.0,
        "queue_time_ms": 2.0,
        "mean_itl_ms": 10.0,
        "tokens_per_second": 100.0,
    }
    said = answer.chronostat
    assert (said["setting"], said["kept"], said["charged_ms"]) == ("vision_tokens=80", True, 50.5)
    assert said["budget"] == {"ms": 60.0, "kind": "deadline"}
    assert said["stages"]["vision_ms"] == 12.0
    (ask,) = scripted.asked
    assert [(turn.role, turn.parts) for turn in ask.turns] == [("system", ("Be brief.",)), ("user", (0, "What?"))]
    assert ask.new_tokens == 5


def test_a_stream_ends_in_done_and_says_usage_where_it_is_asked_for(server):
    asked = {"model": MODEL, "messages": MESSAGES, "stream": True}
    with httpx2.stream("POST", f"{server.address}/v1/chat/completions", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " world"},
        {},
    ]
    assert chunks[-1]["chronostat"]["setting"] == "vision_tokens=80"
    assert not any("usage" in chunk or "metrics" in chunk for chunk in chunks[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client_of(server).chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_body={"stream_options": options}
    )
    *_, reason, last = stream
    assert (reason.choices[0].finish_reason, last.choices, last.usage.total_tokens) == ("stop", [], 9)
    assert last.metrics["queue_time_ms"] == 2.0


def test_usage_goes_with_each_piece_where_a_load_generator_asks_for_it(server):
    stream = client_of(server).chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_body={"stream_options": {"continuous_usage_stats": True}}
    )
    assert [chunk.usage.completion_tokens for chunk in stream if chunk.usage] == [1, 2]


def test_the_asynchronous_client_asks_for_several_at_once(server, scripted):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
            asking = [client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=i) for i in range(4)]
            return await asyncio.gather(*asking)

    assert len({answer.id for answer in asyncio.run(ask_all())}) == 4
    assert sorted(ask.seed for ask in scripted.asked) == [0, 1, 2, 3]


def test_curl_gets_an_answer(server):
    body = json.dumps({"model": MODEL, "messages": MESSAGES})
    command = ["curl", "-s", "-H", "Content-Type: application/json", "-H", "x-latency-budget-ms: 60", "-d", body]
    said = subprocess.run([*command, f"{server.address}/v1/chat/completions"], capture_output=True, check=True)
    answer = json.loads(said.stdout)
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert answer["chronostat"]["budget"] == {"ms": 60.0, "kind": "deadline"}


def test_models_health_and_metrics(server):
    client = client_of(server)
    (model,) = client.models.list().data
    assert (model.id, model.chronostat) == (MODEL, {"setting": "full"})
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist here; this server has 'stand-in'"):
        client.models.retrieve("other")
    assert httpx2.get(f"{server.address}/health").json() == {"status": "ready"}
    client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"latency_budget_ms": 40})
    text = httpx2.get(f"{server.address}/metrics").text
    for line in (
        'chronostat_requests_total{status="200"} 1.0',
        'chronostat_settings_total{setting="vision_tokens=80"} 1.0',
        'chronostat_deadlines_total{kept="false"} 1.0',
        "chronostat_prompt_tokens_total 7.0",
        "chronostat_time_to_first_token_seconds_sum 0.0375",
        "chronostat_inter_token_latency_seconds_count 1.0",
        "chronostat_request_vision_time_seconds_sum 0.012",
        "chronostat_num_requests_waiting 0.0",
    ):
        assert f"\n{line}" in text, line


def test_a_path_that_is_not_there_has_a_body_of_openai(server):
    answer = httpx2.get(f"{server.address}/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert httpx2.get(f"{server.address}/v1/chat/completions").status_code == 405


def test_what_the_model_raises_is_told_and_the_next_request_is_answered(server, scripted):
    scripted.raises = RuntimeError("out of memory")
    client = client_of(server)
    with pytest.raises(openai.InternalServerError, match=r"the model raised RuntimeError \(out of memory\)") as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.code == "model_error"
    scripted.raises = None
    assert client.chat.completions.create(model=MODEL, messages=MESSAGES).choices
    assert statuses(server) == [500, 200]


def test_an_error_after_a_stream_began_ends_it(server, scripted):
    scripted.raises = RuntimeError("out of memory")
    stream = client_of(server).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="out of memory"):
        list(stream)


def test_a_strict_budget_that_nothing_can_keep_is_refused_before_it_waits(server, scripted):
    budget = {"latency_budget_ms": 9, "budget_policy": "strict"}
    with pytest.raises(openai.UnprocessableEntityError, match=r"the cheapest needs 10\.0 ms") as caught:
        client_of(server).chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=budget)
    assert (caught.value.code, caught.value.param) == ("budget_unmeetable", "latency_budget_ms")
    assert scripted.asked == []


def test_who_finds_the_line_full_is_told_when_to_come_again(tmp_path):
    scripted = Scripted()
    scripted.goes_on.clear()
    with running(tmp_path, scripted, most_waiting=1) as server:
        url = f"{server.address}/v1/chat/completions"
        asked = {"model": MODEL, "messages": MESSAGES}

        async def three():
            async with httpx2.AsyncClient(timeout=WAIT_S) as client:
                first = asyncio.create_task(client.post(url, json=asked))
                await asyncio.to_thread(scripted.begun.wait, WAIT_S)
                second = asyncio.create_task(client.post(url, json=asked))
                await asyncio.to_thread(until, lambda: len(server.service.line))
                third = await client.post(url, json=asked)
                scripted.goes_on.set()
                return [await first, await second, third]

        answers = asyncio.run(three())
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert "1 requests wait already" in answers[-1].json()["error"]["message"]
    assert sorted(statuses(server)) == [200, 200, 429]


def test_requests_without_an_answer_hold_so_many_bytes_and_give_them_back(tmp_path):
    scripted = Scripted()
    size = len(json.dumps({"model": MODEL, "messages": MESSAGES}))
    with running(tmp_path, scripted, limits=Limits(unanswered=2 * size + size // 2)) as server:
        url, asked = f"{server.address}/v1/chat/completions", {"model": MODEL, "messages": MESSAGES}

        async def ask():
            async with one_waits(server, scripted) as waiting:
                async with httpx2.AsyncClient(timeout=WAIT_S) as client:
                    refused = [await client.post(url, json=asked) for _ in range(2)]
                scripted.goes_on.set()
                return refused, [await each for each in waiting]

        refused, answers = asyncio.run(ask())
        for answer in refused:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "memory_full")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert "bytes already, and " in answer.json()["error"]["message"]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [httpx2.post(url, json=asked).status_code for _ in range(4)] == [200] * 4
    assert sorted(statuses(server)) == [200] * 6 + [429] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_generation(server, scripted, stream):
    scripted.goes_on.clear()

    async def leave():
        async with httpx2.AsyncClient(timeout=WAIT_S) as client:
            asked = {"model": MODEL, "messages": MESSAGES, "stream": stream}
            task = asyncio.create_task(client.post(f"{server.address}/v1/chat/completions", json=asked))
            await asyncio.to_thread(scripted.begun.wait, WAIT_S)
            task.cancel()

    asyncio.run(leave())
    until(lambda: scripted.left)
    server.end()
    assert statuses(server) == [499]


@asynccontextmanager
async def one_waits(server, scripted):
    """A request that is being answered, until the test lets it go on, and one that waits behind it."""
    scripted.goes_on.clear()
    url, asked = f"{server.address}/v1/chat/completions", {"model": MODEL, "messages": MESSAGES}
    async with httpx2.AsyncClient(timeout=WAIT_S) as client:
        first = asyncio.create_task(client.post(url, json=asked))
        await asyncio.to_thread(scripted.begun.wait, WAIT_S)
        second = asyncio.create_task(client.post(url, json=asked))
        await asyncio.to_thread(until, lambda: len(server.service.line))
        yield first, second


def test_a_client_that_goes_away_while_it_waits_gives_up_its_place(server, scripted):
    async def leave():
        async with one_waits(server, scripted) as (first, second):
            second.cancel()
            await asyncio.to_thread(until, lambda: not len(server.service.line))
            scripted.goes_on.set()
            return (await first).status_code

    assert asyncio.run(leave()) == 200
    server.end()
    assert len(scripted.asked) == 1
    assert sorted(statuses(server)) == [200, 499]


def test_the_end_finishes_what_runs_and_turns_away_who_waits(server, scripted):
    async def end():
        async with one_waits(server, scripted) as (first, second):
            ending = asyncio.create_task(asyncio.to_thread(server.end))
            turned_away = await second
            scripted.goes_on.set()
            await ending
            return await first, turned_away

    first, second = asyncio.run(end())
    assert (first.status_code, second.status_code) == (200, 503)
    assert second.json()["error"]["code"] == "server_ending"
    assert sorted(statuses(server)) == [200, 503]
    assert [path.suffix for path in (server.run / "requests").iterdir() if path.stat().st_size] == [".parquet"]


def test_before_it_is_warm_requests_are_refused_with_when_to_come_again(server):
    server.service.state = "warming"
    with pytest.raises(openai.InternalServerError, match="the server warms up; /health says when") as caught:
        client_of(server).chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "5")
    assert httpx2.get(f"{server.address}/health").status_code == 503
    server.service.state = "ready"


def test_refusals_of_the_answerer_keep_their_status(server, scripted):
    scripted.raises = Refused(422, "cannot be kept", code="budget_unmeetable", param="latency_budget_ms")
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be kept"):
        client_of(server).chat.completions.create(model=MODEL, messages=MESSAGES)
