"""A run that version 0.1.0 wrote opens, is shown, continues and decides as it did then."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from chronostat.control.controller import load_controller
from chronostat.data.demo import DemoTask
from chronostat.errors import UnlikeConditions
from chronostat.execution.conditions import as_it_was
from chronostat.execution.execute import execute, request_for
from chronostat.measure.clock import CpuClock
from chronostat.records import NOT_RECORDED, Budget, Conditions, Setting, Step
from chronostat.runs.store import RunStore, Validation
from chronostat.runs.stored import is_trained, stored_config
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


@pytest.fixture
def on_that_machine(monkeypatch, bundled, conditions):
    """This process claims the conditions of the stored run, with the decoding that this model has by itself."""
    now = as_it_was(conditions, bundled.model)
    monkeypatch.setattr("chronostat.control.controller.read_conditions", lambda *_, **__: now)
    return now


@pytest.fixture(scope="module")
def requests(bundled):
    samples = DemoTask(seed=0).split("test")[:6]
    return {sample.id: request_for(sample, bundled.processor, None) for sample in samples}


def test_its_metadata_and_configuration_are_read(stored):
    metadata, config = stored.metadata, stored_config(stored)
    assert metadata["version"] == "0.1.0"
    assert metadata["model"] == {"name": "bundled demo_vlm", "fingerprint": "2e29f80f8ab1", "parameters": 5_301_824}
    assert {phase: told["generate_calls"] for phase, told in metadata["phases"].items()} == EXECUTIONS
    assert (config.train.trials, config.validation.samples, config.seconds) == (6, 6, 450.0)
    assert config.model.engine == "eager"  # keys that came later are what they were by themselves
    assert not config.measure.sample
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


def test_its_steps_and_decisions_are_read(stored):
    assert len(stored.decisions()) == 6 * 6  # samples, budgets
    steps = stored.steps()
    assert [step.index for step in steps] == [0, 1, 2, 3, 4, 5]
    assert (steps[-1].quality, steps[-1].executed_ms) == (0.25, 1813.463867)
    assert steps[-1].budget == Budget(kind="deadline", fraction=0.5269031053141116)


def test_its_tables_answer_queries(stored):
    rows = stored.query("SELECT phase, count(*) FROM executions GROUP BY phase").fetchall()
    assert dict(rows) == EXECUTIONS


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["validate"], "has been validated: its test split is judged once; for another verdict name a new run"),
        (["train", "--resume"], "has finished training; next: chronostat validate"),
    ],
)
def test_what_was_done_is_not_done_again(copied, words, said):
    assert said in refusal(typed(*words, copied))


def test_a_validation_that_was_cut_off_is_not_taken_up(copied):
    (copied / "validation.json").unlink()
    assert f"the validation of {copied} was interrupted" in refusal(typed("validate", copied))


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


def test_its_controller_decides_as_it_did(stored, bundled, requests, on_that_machine):
    controller = load_controller(STORED / "controller", bundled.model, bundled.processor)
    assert (controller.metric, controller.full_ms) == ("prefill_ms", 62.262748499999994)
    made = stored.decisions()
    now = [controller.choose(requests[each.sample_id], each.budget, CpuClock()).setting for each in made]
    assert now == [each.setting for each in made]
    assert len(set(now)) == 7


def test_its_controller_answers(stored, bundled, requests, on_that_machine):
    controller = load_controller(STORED / "controller", bundled.model, bundled.processor)
    first = stored.trials("test")[0]
    request = requests[first.sample_id]
    answer = controller.generate(
        bundled.model,
        bundled.processor,
        request.images,
        request.sample.prompt,
        budget_ms=0.5 * controller.full_ms,
        max_new_tokens=8,
    )
    budget = Budget(kind="mean", fraction=0.5)
    (then,) = [d for d in stored.decisions() if (d.sample_id, d.budget) == (first.sample_id, budget)]
    (ran,) = [e for e in first.executions if e.setting == then.setting]
    assert (answer.setting, answer.output_ids, answer.answer) == (ran.setting, ran.output_ids, ran.answer)
    assert answer.image_tokens == ran.image_tokens == 160


def test_every_setting_still_gives_the_answers_of_then(stored, bundled, requests):
    first = stored.trials("test")[0]
    for ran in first.executions:
        now = execute(bundled.model, requests[first.sample_id], setting=ran.setting, max_new_tokens=8, clock=CpuClock())
        assert (now.output_ids, now.prompt_tokens) == (ran.output_ids, ran.prompt_tokens), str(ran.setting)


def test_on_another_machine_its_controller_needs_a_full_of_there(monkeypatch, bundled, conditions):
    there = replace(as_it_was(conditions, bundled.model), machine="another", affinity="0")
    monkeypatch.setattr("chronostat.control.controller.read_conditions", lambda *_, **__: there)
    with pytest.raises(UnlikeConditions, match=r"machine: vm != another\)"):
        load_controller(STORED / "controller", bundled.model, bundled.processor)
    moved = load_controller(STORED / "controller", bundled.model, bundled.processor, full_ms=50.0)
    assert (moved.full_ms, moved.metadata.conditions) == (50.0, there)
