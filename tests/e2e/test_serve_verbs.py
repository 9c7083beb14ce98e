"""chronostat serve and ask as a user runs them: the bundled model behind real clients, ended by signals."""

import base64
import io
import re
import signal

import openai
import pytest

from chronostat.data.demo import DemoTask
from chronostat.execution.execute import execute, request_for
from chronostat.records import Setting
from chronostat.runs.store import RunStore
from chronostat.serving.log import read_requests
from e2e.commands import started, typed
from stand_ins.machines import Machine, trained_on

WAIT_S = 120.0  # ends a hang, and nothing else
LONG_MS = 600_000


def content_of(sample):
    file = io.BytesIO()
    sample.load_images()[0].save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sample.prompt}]


@pytest.fixture(scope="module")
def controller(bundled, tmp_path_factory):
    """Of a simulated machine: serving renews it by this one before the first request."""
    folder = tmp_path_factory.mktemp("controllers") / "controller"
    trained_on(bundled, Machine(), metric="request_ms").save(folder)
    return folder


class Served:
    """A server in a process of its own, ready when this is made."""

    def __init__(self, process, run):
        self.process, self.run = process, run
        self.said = [process.stdout.readline()]
        address = re.search(r"http://\S+", self.said[0])[0]
        self.client = openai.OpenAI(base_url=address, api_key="none", timeout=WAIT_S, max_retries=100)
        self.ask("Warm?", max_completion_tokens=1)  # the client comes again until the server is warm

    def ask(self, content, **options):
        messages = [{"role": "user", "content": content}]
        return self.client.chat.completions.create(model="demo_vlm", messages=messages, **options)

    def ended(self, how):
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == -how, err
        return "".join([*self.said, out])


@pytest.fixture
def serve(tmp_path):
    """Starts servers, which end with the test."""
    servers = []

    def make(*words):
        run = tmp_path / f"run-{len(servers)}"
        process = started("serve", *words, "--port", "0", "--run-dir", run, "--set", "model.device=cpu", cwd=tmp_path)
        servers.append(process)
        return Served(process, run)

    yield make
    for process in servers:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_day_of_serving_with_a_controller(serve, controller, bundled):
    samples = DemoTask().split("validation")[:3]
    server = serve("--controller", controller)
    (model,) = server.client.models.list().data
    assert model.chronostat["controller"]
    assert model.chronostat["calibrated"]
    assert 0 < model.chronostat["pace"]["low"] < 1 < model.chronostat["pace"]["high"]
    full_ms = model.chronostat["full_ms"]
    free = server.ask(content_of(samples[0]))
    execution = execute(
        bundled.model, request_for(samples[0], bundled.processor, None), setting=Setting(), max_new_tokens=8
    )
    assert free.choices[0].message.content == execution.answer
    assert free.usage.prompt_tokens == execution.prompt_tokens
    assert free.chronostat["setting"] == "vision_tokens=272 moe_topk=4 block_skip=-"
    tight = server.ask(content_of(samples[1]), extra_body={"latency_budget_ms": 0.01})
    assert (tight.chronostat["kept"], tight.chronostat["meetable"]) == (False, False)
    assert tight.chronostat["setting"].startswith("vision_tokens=16 ")
    loose = server.ask(content_of(samples[2]), extra_body={"latency_budget_ms": LONG_MS})
    assert (loose.chronostat["kept"], loose.chronostat["meetable"]) == (True, True)
    stages = loose.chronostat["stages"]
    inside_ms = stages["preprocess_ms"] + stages["controller_ms"] + stages["total_ms"]
    assert loose.chronostat["charged_ms"] > inside_ms + stages["queue_ms"] + stages["image_ms"]
    with pytest.raises(openai.UnprocessableEntityError, match="the cheapest setting needs"):
        server.ask("Hi", extra_body={"latency_budget_ms": 0.01, "budget_policy": "strict"})
    mean = server.ask(content_of(samples[2]), extra_body={"latency_budget_ms": full_ms, "latency_budget_kind": "mean"})
    assert (mean.chronostat["kept"], mean.chronostat["meetable"]) == (None, True)
    said = server.ended(signal.SIGTERM)
    assert "calibrated: full takes" in said
    requests = read_requests(server.run)
    answered = requests.filter(requests.column("status").to_numpy() == 200).to_pylist()
    assert [row["budget_ms"] for row in answered] == [None, None, 0.01, LONG_MS, full_ms]
    assert 422 in requests.column("status").to_pylist()
    calibrated = RunStore.open(server.run).trials("calibrate")
    assert len(calibrated) == 60
    assert {execution.answer for trial in calibrated for execution in trial.executions} == {None}
    told = typed("report", server.run)
    assert told.status == 0
    assert "Budgets kept while serving" in (server.run / "report.html").read_text()


@pytest.mark.slow
def test_one_setting_without_a_controller_and_all_ways_to_ask(serve):
    sample = DemoTask().split("validation")[0]
    server = serve("--setting", "moe_topk=1", "--store-requests")
    stream = server.ask(
        content_of(sample),
        stream=True,
        max_completion_tokens=6,
        extra_body={"ignore_eos": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-1].chronostat["setting"] == "moe_topk=1"
    assert chunks[-2].choices[0].finish_reason == "length"
    running = [chunk.usage.prompt_tokens for chunk in chunks[:-1] if chunk.usage]
    assert set(running) == {chunks[-1].usage.prompt_tokens}
    drawn = [server.ask(content_of(sample), temperature=2.0, seed=seed, max_completion_tokens=8) for seed in (1, 1, 2)]
    assert drawn[0].choices == drawn[1].choices
    assert [each.chronostat["sampling_seed"] for each in drawn] == [1, 1, 2]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    whole = server.ask(content_of(sample), max_completion_tokens=6, extra_body={"min_tokens": 6})
    assert whole.choices[0].message.content == text
    cut = server.ask(content_of(sample), max_completion_tokens=6, stop=[text[1]], extra_body={"min_tokens": 6})
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (text[: text.index(text[1])], "stop")
    talk = [
        {"role": "user", "content": content_of(sample)},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "And?"},
    ]
    assert server.client.chat.completions.create(model="demo_vlm", messages=talk).choices
    with pytest.raises(openai.BadRequestError, match="takes for a part of an image"):
        server.ask("<IMG_CONTEXT>")
    assert server.ask("Hi").chronostat["stages"]["vision_ms"] is None
    before = read_requests(server.run).num_rows
    server.ended(signal.SIGKILL)
    rows = read_requests(server.run).to_pylist()
    assert len(rows) == before
    assert rows[-1]["answer"] is not None
    assert "Hi" in rows[-1]["messages"]


def test_what_is_typed_wrongly_is_said_at_once(tmp_path):
    said = typed("serve", tmp_path, "--controller", tmp_path)
    assert (said.status, said.err) == (2, "chronostat: RUN and --controller both name a controller; give one of them\n")
    said = typed("serve", tmp_path, "--setting", "moe_topk=1")
    assert "--setting 'moe_topk=1': the controller chooses settings; leave one of them out" in said.err
    assert "--data x is for calibrating a controller" in typed("serve", "--data", "x").err
    assert "--budget-ms and a controller" in typed("ask", "--budget-ms", 5).err
    assert "--budget-ms and a controller" in typed("ask", tmp_path).err
    assert "both name a controller" in typed("ask", tmp_path, "--controller", tmp_path, "--budget-ms", 5).err


def test_what_cannot_be_used_is_said_before_the_model_is_loaded(tmp_path):
    said = typed("serve", "--controller", tmp_path)
    assert (said.status, "holds no controller" in said.err) == (8, True)
    keys = tmp_path / "keys"
    assert "cannot be read" in typed("serve", "--api-key-file", keys).err
    keys.write_text("\n \n")
    assert "holds no key; write one a line" in typed("serve", "--api-key-file", keys).err
    assert "serve" not in typed("serve", "--set", "train.seconds=5").out
    assert "taken are keys of model" in typed("serve", "--set", "train.seconds=5").err
    said = typed("serve", "--host", "0.0.0.0", "--port", 0, "--model", tmp_path / "none")
    assert said.out == "warning: 0.0.0.0 can be reached by others without a key; ask for one with --api-key-file\n"
    assert (said.status, "is no directory" in said.err) == (4, True)
    said = typed("serve", "--host", "256.0.0.1")
    assert (said.status, "cannot listen on 256.0.0.1 port 8000" in said.err) == (2, True)


@pytest.mark.slow
def test_ask_says_what_was_chosen_and_what_it_took(bundled, controller, tmp_path):
    said = typed("ask", "--controller", controller, "--budget-ms", LONG_MS, "--set", "model.device=cpu")
    assert said.status == 0, said.err
    assert re.search(r"^answer: \S+$", said.out, re.MULTILINE)
    assert re.search(r"request_ms, the controller's own time in it: [\d.]+ ms of 600000 ms, kept", said.out)
    assert "setting: full" in typed("ask", "--set", "model.device=cpu").out
    said = typed("ask", "--controller", controller, "--budget-ms", 0.01, "--set", "model.device=cpu")
    assert (said.status, "no setting can meet the budget" in said.err) == (9, True)
