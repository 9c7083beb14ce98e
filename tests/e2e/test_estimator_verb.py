"""chronostat estimator evaluate, as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from chronostat.cli import app


def said(*words: object):
    return CliRunner().invoke(app, ["estimator", "evaluate", *map(str, words)])


def test_what_is_no_run_is_refused(tmp_path):
    result = said(tmp_path)
    assert (result.exit_code, "holds no run" in result.stderr) == (8, True)
    assert said(tmp_path, "--seconds", "0").exit_code == 2


@pytest.mark.slow
def test_the_estimator_beside_measuring_once(tmp_path):
    """On the bundled model, from a training of a few trials."""
    run, errors = tmp_path / "run", tmp_path / "errors.json"
    overrides = ["train.trials=12", "train.calibration_seconds=3"]
    options = [word for override in overrides for word in ("--set", override)]
    trained = CliRunner().invoke(app, ["train", "--run-dir", str(run), *options])
    assert trained.exit_code == 0, trained.stderr
    result = said(run, "--seconds", 6, "--json", errors)
    assert result.exit_code == 0, result.stderr
    assert "wrong order of" in result.stdout
    found = json.loads(errors.read_text())
    assert found["executions"] == 12 * found["requests"]  # six settings, each twice
    assert 0 < found["estimated"]["prefill_error"] < 1
    assert 0 <= found["measured_once"]["wrong_order"] <= 1
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "source": "total_only"}))
    assert said(run).exit_code == 7
