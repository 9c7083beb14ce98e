"""chronostat estimator evaluate, as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from chronostat.cli.app import app
from e2e.commands import sets, typed


def said(*words: object):
    return CliRunner().invoke(app, ["estimator", "evaluate", *map(str, words)])


def test_what_is_no_run_is_refused(tmp_path):
    result = said(tmp_path)
    assert (result.exit_code, "holds no run" in result.stderr) == (8, True)
    assert said(tmp_path, "--seconds", "0").exit_code == 2


@pytest.mark.slow
def test_the_estimator_beside_measuring_once(tmp_path):
    """On the bundled model, from nine samples under six settings."""
    run, errors = tmp_path / "run", tmp_path / "errors.json"
    levels = ("knobs.vision_tokens=[272, 80, 16]", "knobs.moe_topk=[4]", "knobs.block_skip=[[], [3, 4]]")
    overrides = (*levels, "train.calibration_executions=54", "train.select_executions=0", "train.executions=1")
    trained = typed("train", "--run-dir", run, *sets(*overrides))
    assert trained.status == 0, trained.err
    result = said(run, "--requests", 5, "--seconds", 1e6, "--json", errors)
    assert result.exit_code == 0, result.stderr
    assert "wrong order of" in result.stdout
    found = json.loads(errors.read_text())
    assert (found["requests"], found["executions"]) == (5, 60)  # under six settings, each twice
    assert 0 < found["estimated"]["prefill_error"] < 1
    assert 0 <= found["measured_once"]["wrong_order"] <= 1
    metadata = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**metadata, "source": "total_only"}))
    assert said(run).exit_code == 7
