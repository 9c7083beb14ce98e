"""A run that version 0.1.0 wrote opens, answers queries and is shown; what is refused says what to do."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from chronostat.control.controller import load_controller
from chronostat.data.demo import DemoTask
from chronostat.errors import StoreError
from chronostat.execution.conditions import as_it_was
from chronostat.execution.execute import execute, request_for
from chronostat.measure.clock import CpuClock
from chronostat.records import NOT_RECORDED, Budget, Conditions, Setting, Step
from chronostat.runs.store import RunStore, Validation
from chronostat.runs.stored import is_trained
from e2e.commands import refusal, typed

STORED = Path(__file__).parents[2] / "stored" / "run_0_1_0"
FULL = Setting({"vision_tokens": 272, "moe_topk": 4, "block_skip": ()})
EXECUTIONS = {"warmup": 38, "calibrate": 36, "train": 24, "select": 288, "test": 51}


@pytest.fixture(scope="module")
def stored():
    """Only to be read: reading writes nothing."""
    return RunStore.open(STORED)


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "run"))


@pytest.fixture(scope="module")
def verdict(stored):
    return Validation.from_json(stored.read_json("validation.json"))


@pytest.fixture(scope="module")
def conditions(stored):
    return Conditions.from_json(stored.metadata["conditions"])


@pytest.fixture(scope="module")
def requests(bundled):
    samples = DemoTask(seed=0).split("test")[:6]
    return {sample.id: request_for(sample, bundled.processor, None) for sample in samples}


def test_its_metadata_is_read(stored):
    metadata = stored.metadata
    assert metadata["version"] == "0.1.0"
    assert metadata["model"] == {"name": "bundled demo_vlm", "fingerprint": "2e29f80f8ab1", "parameters": 5_301_824}
    assert {phase: told["generate_calls"] for phase, told in metadata["phases"].items()} == EXECUTIONS
    assert metadata["config"]["train"]["trials"] == 6  # a key of then
    assert is_trained(stored)


def test_each_of_its_executions_is_read(stored):
    trials = stored.trials()
    assert Counter(trial.phase for trial in trials) == {"warmup": 3, "calibrate": 1, "train": 6, "select": 8, "test": 6}
    executions = [(trial.phase, execution) for trial in trials for execution in trial.executions]
    assert Counter(phase for phase, _ in executions) == EXECUTIONS
    first = executions[0][1]
    assert (first.sample_id, first.setting, first.answer) == ("demo-train-000000", FULL, "1345")
    assert first.output_ids == (10, 12, 13, 14, 4)
    assert (first.timing.source, first.timing.total_ms, first.timing.prefill_ms) == ("measured", 228.337804, 178.6135)
    assert first.timing.decode_ms == first.timing.decode_ms_per_token * 4 == 45.26935
    assert all(execution.invalid is None and execution.sampling_seed is None for _, execution in executions)
    assert {(trial.probabilities, trial.policy_version) for trial in trials} == {((), None)}  # nobody wrote them then


def test_its_steps_and_decisions_are_read(stored):
    assert len(stored.decisions()) == 6 * 6  # samples, budgets
    steps = stored.steps()
    assert [step.index for step in steps] == [0, 1, 2, 3, 4, 5]
    assert (steps[-1].quality, steps[-1].executed_ms) == (0.25, 1813.463867)
    assert steps[-1].budget == Budget(kind="deadline", fraction=0.5269031053141116)


def test_its_tables_answer_queries(stored):
    rows = stored.query("SELECT phase, count(*) FROM executions GROUP BY phase").fetchall()
    assert dict(rows) == EXECUTIONS
    chances = stored.query("SELECT DISTINCT draw_probabilities, policy_version FROM executions").fetchall()
    assert chances == [(None, None)]


def test_its_verdict_is_what_its_records_say(stored, verdict):
    assert (len(verdict.scores), len(verdict.fixed), len(verdict.comparisons)) == (21, 6, 15)
    assert verdict.counted.executions == EXECUTIONS["select"] + EXECUTIONS["test"] == 339
    ran = {(e.sample_id, e.setting): e for trial in stored.trials("test") for e in reversed(trial.executions)}
    scores = [score for score in verdict.scores if score.policy == "controller"]
    assert len(scores) == 6
    for score in scores:
        chosen = [each for each in stored.decisions() if each.budget == score.budget]
        played = [ran[each.sample_id, each.setting] for each in chosen]
        charged_ms = [e.timing.prefill_ms + each.controller_ms for e, each in zip(played, chosen, strict=True)]
        assert score.accuracy.point == pytest.approx(sum(e.quality for e in played) / 6)
        assert score.mean_ms.point == pytest.approx(sum(charged_ms) / 6)


def test_what_was_not_recorded_then_reads_as_it_was(conditions, bundled):
    assert conditions.engine == "eager"
    assert conditions.decoding == NOT_RECORDED
    assert as_it_was(conditions, bundled.model) == replace(conditions, decoding="greedy")


def test_its_report_and_picture_are_written(copied):
    said = typed("report", copied)
    assert said.status == 0
    assert said.out.splitlines() == [f"report: {copied / 'report.html'}", f"picture: {copied / 'report.svg'}"]
    page = (copied / "report.html").read_text()
    assert "mean 0.30: the controller is +0.0 [-45.9, +45.9] points from the best fixed setting: undecided" in page
    assert "chronostat 0.1.0" in page
    assert "6 test samples, measured prefill_ms + controller_ms" in (copied / "report.svg").read_text()


@pytest.mark.parametrize("judged", [True, False])
def test_its_configuration_is_of_another_version(copied, judged):
    """The one of a phase that ended by time cannot be kept in executions: it is neither continued nor judged."""
    if not judged:
        (copied / "validation.json").unlink()
    message = refusal(typed("validate", copied))
    assert message == (
        f"the configuration in {copied / 'run.json'} cannot be used: train.trials: Extra inputs are not permitted "
        f"(12 more); it was not written by this version of chronostat. chronostat report {copied} shows it all the "
        "same; to train and judge begin a new run"
    )
    before = sorted(path.name for path in copied.rglob("*"))
    (copied / "controller" / "controller.json").unlink()  # as if it had been killed while it trained
    assert "to train and judge begin a new run" in refusal(typed("train", "--resume", copied))
    assert sorted(path.name for path in copied.rglob("*")) == [name for name in before if name != "controller.json"]


def test_a_training_that_has_ended_is_not_resumed(copied):
    assert "has finished training; next: chronostat validate" in refusal(typed("train", "--resume", copied))


def test_its_controller_is_refused_with_what_to_do(bundled):
    message = (
        r"cannot read .*run_0_1_0/controller/controller.json: controller\.[^\n]*; it was not written by this "
        r"version of chronostat, or is damaged: train a controller with this one \(chronostat train\), or decide with "
        r"the version that wrote it$"
    )
    with pytest.raises(StoreError, match=message):
        load_controller(STORED / "controller", bundled.model, bundled.processor)


def test_it_goes_on_with_records_of_today(copied):
    step = Step(
        index=6,
        executed_ms=2000.0,
        quality=0.5,
        latency_fraction=0.5,
        budget=Budget(kind="mean", fraction=0.5),
        metrics={"loss": 1.0},
    )
    with RunStore.open(copied) as store:
        before = store.steps()
        store.append(step)
        store.compact()
    assert RunStore.open(copied).steps() == [*before, step]
    assert [part.name for part in (copied / "steps").iterdir()] == ["00000000-00000006.parquet"]


def test_every_setting_still_gives_the_answers_of_then(stored, bundled, requests):
    first = stored.trials("test")[0]
    for ran in first.executions:
        now = execute(bundled.model, requests[first.sample_id], setting=ran.setting, max_new_tokens=8, clock=CpuClock())
        assert (now.output_ids, now.prompt_tokens) == (ran.output_ids, ran.prompt_tokens), str(ran.setting)
