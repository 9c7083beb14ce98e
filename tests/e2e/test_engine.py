"""``--engine`` as a user types it, on a CPU: the same rules, in plain Python."""

import json

import pytest

from chronostat.runs.store import RunStore
from e2e.commands import TINY, refusal, sets, typed

pytestmark = pytest.mark.slow  # each verb executes by both engines


def test_measure_names_the_engine_and_engines_are_not_compared(tmp_path):
    file = tmp_path / "measured.json"
    said = typed("measure", "--device", "cpu", "--engine", "graph", "--repeats", "2", "--json", file)
    assert said.status == 0
    assert "engine graph" in " ".join(said.out.split())
    (arm,) = json.loads(file.read_text())["arms"]
    assert arm["conditions"]["engine"] == "graph"
    assert arm["source"] == "measured"


def test_knobs_judges_by_the_engine(tmp_path):
    file = tmp_path / "knobs.json"
    said = typed(
        "knobs",
        "--device",
        "cpu",
        "--engine",
        "graph",
        "--repeats",
        "1",
        "--json",
        file,
        *sets("knobs.moe_topk=[4, 1]"),
    )
    assert said.status == 0
    assert json.loads(file.read_text())["conditions"]["engine"] == "graph"


def test_an_unknown_engine_is_refused():
    said = typed("measure", "--engine", "warp")
    assert said.status == 2
    assert "'warp' is not one of 'eager', 'graph', 'auto'" in " ".join(said.err.replace("│", " ").split())


def test_a_model_that_cannot_run_by_it_is_refused_with_what_to_do():
    words = ("measure", "--device", "cpu", "--engine", "graph", "--attention", "eager")
    assert refusal(typed(*words)) == (
        "bundled demo_vlm cannot run by the engine 'graph': its decoder attends by 'eager'; load it with "
        "attn_implementation='sdpa'; ask for 'auto' or 'eager'"
    )


def test_a_run_trains_and_is_judged_by_its_engine(tmp_path):
    run = tmp_path / "run"
    assert typed("train", "--run-dir", run, *sets(*TINY, "model.engine=graph", "model.device=cpu")).status == 0
    store = RunStore.open(run)
    assert store.metadata["conditions"]["engine"] == "graph"
    executions = [e for trial in store.trials("train") for e in trial.executions]
    assert executions
    assert all(execution.invalid is None for execution in executions)
    typed("validate", run)
    judged = json.loads((run / "validation.json").read_text())
    assert judged["conditions"]["engine"] == "graph"
