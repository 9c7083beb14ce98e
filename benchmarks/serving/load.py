"""Does a public load generator see what the server says? guidellm streams answers about pictures, one at a time."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kit.estimates import ratio_interval
from benchmarks.serving.asking import NEW_TOKENS, Question, questions
from benchmarks.serving.servers import Server, ours
from benchmarks.serving.task import Task, raw, spread, stored
from chronostat.models.load import BUNDLED
from chronostat.records import plain

VERSION = "0.8.1"
_START_S = 120.0  # of the generator: its imports, its processes, its report
INSTALL = f"python -m venv runs/guidellm && runs/guidellm/bin/pip install guidellm=={VERSION}"


class NoGeneratorError(RuntimeError):
    """The load generator is not installed, or failed."""


def load(task: Task) -> dict[str, Any]:
    """Ours serves ``full``; what guidellm reports of each request is put beside the same request in our log, by its id.

    Raises:
        NoGeneratorError: guidellm is missing, or ended with an error.
    """
    if task.guidellm is None:
        raise NoGeneratorError(
            f"the part load needs guidellm {VERSION}, and none is on PATH; install it into a venv of its own with: "
            f"{INSTALL}; then name it with --guidellm runs/guidellm/bin/guidellm, or leave the part out"
        )
    with ours("load", task.folder) as server, TemporaryDirectory() as folder:
        report = _run(task.guidellm, task, server, Path(folder))
        server.end()
        return beside(report, stored(server))


def beside(report: Mapping[str, Any], log: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What guidellm says over what the server says, request by request.

    Args:
        report: of guidellm.
        log: requests that the server has stored, by their ids.
    """
    (benchmark,) = report["benchmarks"]
    requests = benchmark["requests"]
    seen = [figures_of(each) for each in requests["successful"]]
    own = [_own(log[each["response_id"]]) for each in requests["successful"]]
    pairs = {
        name: ([each[name] for each in seen], [each[name] for each in own])
        for name in ("ttft_ms", "itl_ms", "request_ms")
    }
    return {
        "requests": len(seen),
        "errored": len(requests["errored"]),
        "incomplete": len(requests["incomplete"]),
        "generator": f"guidellm {report['metadata']['guidellm_version']}",
        "sources": {
            "generator": "its report: from before it sends to the first piece of text (ttft_ms), to the end of the "
            "answer (request_ms), between pieces (itl_ms)",
            "server": "its log: from receipt to the first token (ttft_ms), to the end of generate() (request_ms), "
            "decode_ms_per_token (itl_ms)",
        },
        **{
            name: {
                "generator": spread(theirs),
                "server": spread(ours_),
                "generator_over_server": plain(ratio_interval(theirs, ours_)),
            }
            for name, (theirs, ours_) in pairs.items()
        },
        "raw": {name: {"generator": raw(one), "server": raw(other)} for name, (one, other) in pairs.items()},
    }


def figures_of(request: Mapping[str, Any]) -> dict[str, float]:
    """What guidellm reports of one request, in ms."""
    return {
        "ttft_ms": request["time_to_first_token_ms"],
        "itl_ms": request["inter_token_latency_ms"],
        "request_ms": request["request_latency"] * 1e3,
    }


def _own(row: Mapping[str, Any]) -> dict[str, float]:
    """What the server's log says of it, from its receipt."""
    request_ms = row["queue_ms"] + row["image_ms"] + row["wall_ms"]
    return {
        "ttft_ms": request_ms - row["total_ms"] + row["ttft_ms"],
        "itl_ms": row["decode_ms_per_token"],
        "request_ms": request_ms,
    }


def _run(guidellm: Path, task: Task, server: Server, folder: Path) -> dict[str, Any]:
    """Its report."""
    data, report = folder / "questions.jsonl", folder / "report.json"
    data.write_text("".join(_line(question) for question in questions(task.requests)), encoding="utf-8")
    words: Sequence[str] = (
        *("--backend", f"kind=openai_http,target={server.address},model={server.model}"),
        *("--profile", "kind=synchronous"),
        *("--constraint", f"kind=max_requests,count={task.requests}"),
        *("--constraint", f"kind=max_duration,seconds={task.seconds:.0f}"),
        *("--data", f"kind=json_file,path={data}"),
        *("--tokenizer", f"kind=huggingface_auto,model={BUNDLED}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
    )
    environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(guidellm), "run", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=task.seconds + _START_S,
        check=False,
    )
    if done.returncode or not report.is_file():
        said = (done.stdout + done.stderr)[-2000:]
        raise NoGeneratorError(f"{guidellm} ended with {done.returncode}; without a report that is all it said: {said}")
    return json.loads(report.read_text(encoding="utf-8"))


def _line(question: Question) -> str:
    picture, text = question.messages[0]["content"]
    asked = {"prompt": text["text"], "image": picture["image_url"]["url"], "output_tokens_count": NEW_TOKENS}
    return json.dumps(asked) + "\n"
