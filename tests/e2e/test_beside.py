"""Policies beside the controller, on the bundled model: executed, judged, and refused where they cannot learn."""

import shutil

import pytest

from chronostat.runs.store import RunStore, Validation
from e2e.commands import refusal, sets, typed

pytestmark = pytest.mark.slow  # a whole validation

CONFIG = 2
BESIDE = sets('validation.beside=["kind", "vowpalwabbit"]')


def test_they_are_judged_on_the_same_samples(trained_run, tmp_path):
    pytest.importorskip("vowpalwabbit")
    run = shutil.copytree(trained_run, tmp_path / "run")
    said = typed("validate", run, *BESIDE)
    assert said.status == 0, said.err
    store = RunStore.open(run)
    verdict = Validation.from_json(store.read_json("validation.json"))
    ran = {str(e.setting) for trial in store.trials("test") for e in trial.executions}
    for budget in dict.fromkeys(score.budget for score in verdict.scores):
        scores = {score.policy: score for score in verdict.scores if score.budget == budget}
        for name in ("kind", "vowpalwabbit"):
            assert scores[name].samples == scores["controller"].samples == 4
            assert scores[name].gain is not None
            assert {setting for setting, _ in scores[name].settings} <= ran
            assert f"\n {name} " in said.out
    assert {each.policy for each in verdict.comparisons} >= {"kind", "vowpalwabbit"}


def test_a_run_that_only_judges_has_nothing_to_learn_from(trained_run, tmp_path):
    said = typed("validate", trained_run, "--to", tmp_path / "judged", *BESIDE)
    assert said.status == CONFIG
    assert "holds no trials to learn from; validate the run that trained the controller" in refusal(said)
