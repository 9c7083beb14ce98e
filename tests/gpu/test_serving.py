"""The server on a CUDA device: its worker captures graphs, and clients read what the process itself generates."""

import base64
import io
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
import torch
from transformers import GenerationConfig

from chronostat.config import load_config
from chronostat.data.demo.task import DemoTask
from chronostat.data.samples import Sample
from chronostat.engine import graphed
from chronostat.execution.execute import SampleRequest, execute, request_for
from chronostat.models.load import load_vlm
from chronostat.records import Setting
from chronostat.runs.store import RunStore
from stand_ins.machines import Machine, trained_on

openai = pytest.importorskip("openai")  # the extra `serve`, of which machines with a GPU may have none
building = pytest.importorskip("chronostat.serving.building")
serving = pytest.importorskip("chronostat.serving.server")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE, ENGINE, IN_PROCESS = "cuda", "graph", graphed
NEW_TOKENS = 6
WAIT_S = 300.0  # ends a hang, and nothing else
SAMPLES = DemoTask(seed=0).split("validation")
TEXT = Sample(id="text", split="test", prompt="What is 2 + 3?", references=(), load_images=lambda: ())


@dataclass(frozen=True)
class Served:
    """A server of this process, ready."""

    client: "openai.OpenAI"
    run: Path

    def ask(self, sample, **options):
        budget_ms = options.pop("budget_ms", None)
        named = {} if budget_ms is None else {"latency_budget_ms": budget_ms}
        return self.client.chat.completions.create(
            model="demo_vlm",
            messages=[{"role": "user", "content": content_of(sample)}],
            max_completion_tokens=NEW_TOKENS,
            extra_body={"min_tokens": NEW_TOKENS, **named},
            **options,
        )


@pytest.fixture(scope="module")
def vlm():
    return load_vlm(device=DEVICE, dtype="bfloat16")


@contextmanager
def served(vlm, run, *, controller=None, requests: Sequence[SampleRequest] = ()):
    wanted = building.Wanted(
        config=load_config(None, [f"model.device={DEVICE}", "model.engine=auto"]),
        vlm=vlm,
        controller=controller,
        setting=Setting(),
        requests=requests,
        run_dir=run,
        command="serve",
        most_waiting=4,
        renew_every_s=3600.0,
        told=lambda _: None,
    )
    app, service = building.build(wanted)
    server = serving.Server(app, service)
    with serving.bound("127.0.0.1", 0) as listening:
        service.start(failed=server.stop)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            for _ in range(round(WAIT_S / 0.01)):
                if service.state != "warming":
                    break
                sleep(0.01)
            assert service.state == "ready", service.error
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            yield Served(openai.OpenAI(base_url=address, api_key="none", timeout=WAIT_S, max_retries=0), run)
        finally:
            server.stop()
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the server did not end"
    assert service.error is None


def content_of(sample):
    """Pictures first, as the process prepares them."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in sample.load_images()]
    return [*pictures, {"type": "text", "text": sample.prompt}]


def data_url(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def in_process(vlm, sample, setting):
    """The answer of the same ``generate()`` by the same engine, without a server."""
    images = list(sample.load_images())
    request = SampleRequest(sample=sample, images=images, processor=vlm.processor, quality=None)
    length = GenerationConfig(min_new_tokens=NEW_TOKENS)
    with IN_PROCESS(vlm.model):
        return execute(vlm.model, request, setting=setting, max_new_tokens=NEW_TOKENS, generation_config=length).answer


def test_text_a_picture_and_a_stream_are_answered_as_in_the_process(vlm, tmp_path):
    with served(vlm, tmp_path / "run") as server:
        answers = [server.ask(sample) for sample in (TEXT, SAMPLES[0], TEXT, SAMPLES[0])]
        *pieces, last = server.ask(SAMPLES[1], stream=True, stream_options={"include_usage": True})
    for answer, sample in zip(answers, (TEXT, SAMPLES[0]) * 2, strict=True):
        assert answer.choices[0].message.content == in_process(vlm, sample, Setting())
        assert answer.usage.completion_tokens == NEW_TOKENS
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert streamed == in_process(vlm, SAMPLES[1], Setting())
    of_text, of_picture = (answer.chronostat for answer in answers[2:])
    assert of_text["stages"]["vision_ms"] is None
    assert of_picture["stages"]["vision_ms"] > 0
    assert last.chronostat["stages"]["vision_ms"] > 0
    for said in (of_text, of_picture, last.chronostat):
        assert (said["source"], said["setting"], said["unseen"]) == ("measured", "full", None)
        assert said["stages"]["total_ms"] < said["charged_ms"]
    store = RunStore.open(tmp_path / "run")
    assert store.metadata["conditions"]["engine"] == ENGINE


@pytest.mark.slow
def test_a_controller_is_calibrated_on_the_device_and_its_settings_answer_as_in_the_process(vlm, tmp_path):
    controller = trained_on(vlm, Machine(), metric="request_ms")
    requests = [request_for(sample, vlm.processor, None) for sample in SAMPLES[:12]]
    with served(vlm, tmp_path / "run", controller=controller, requests=requests) as server:
        (model,) = server.client.models.list().data
        cheapest_ms, full_ms = model.chronostat["cheapest_ms"]["deadline"], model.chronostat["full_ms"]
        budgets_ms = (None, (cheapest_ms + full_ms) / 2, 0.001)
        answers = [server.ask(SAMPLES[0], budget_ms=budget_ms) for budget_ms in budgets_ms]
    assert model.chronostat["calibrated"]
    assert [answer.chronostat["meetable"] for answer in answers] == [None, True, False]
    assert len({answer.chronostat["setting"] for answer in answers}) >= 2
    for answer in answers:
        setting = Setting.parse(answer.chronostat["setting"])
        assert answer.choices[0].message.content == in_process(vlm, SAMPLES[0], setting)
    assert len(RunStore.open(tmp_path / "run").trials("calibrate")) == 60
