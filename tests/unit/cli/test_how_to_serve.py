"""What the demo says of serving, by what its controller counts."""

from pathlib import Path

import pytest

from chronostat.cli.actions.demo import _how_to_serve
from chronostat.cli.demo import demo
from chronostat.config import load_config


def test_a_controller_that_counts_what_callers_wait_can_be_served():
    config = load_config(None, ["measure.latency_metric=request_ms"])
    assert _how_to_serve(config, Path("runs/a")) == "next: chronostat serve runs/a"


def test_any_other_has_to_be_trained_for_it():
    said = _how_to_serve(load_config(None), Path("runs/a"))
    assert "chronostat demo --set measure.latency_metric=request_ms --run-dir runs/serving" in said
    assert said.endswith("then chronostat serve runs/serving (docs/serving.md)")


@pytest.mark.parametrize(
    ("overrides", "means", "deadlines"),
    [
        ([], (0.3, 0.4, 0.5), (0.4, 0.6, 0.8)),
        (["measure.latency_metric=request_ms"], (0.5, 0.6, 0.7), (0.6, 0.75, 0.9)),
        (["measure.latency_metric=request_ms", "validation.mean_budgets=[0.4]"], (0.4,), (0.6, 0.75, 0.9)),
    ],
)
def test_the_demo_asks_for_looser_budgets_of_what_callers_wait(monkeypatch, tmp_path, overrides, means, deadlines):
    """A third of it is preprocessing and the like, which no setting shortens."""
    ran = []
    monkeypatch.setattr("chronostat.cli.actions.demo.demo", lambda config, *rest: ran.append(config))
    demo(tmp_path / "run", overrides=overrides)
    assert (ran[0].validation.mean_budgets, ran[0].validation.deadlines) == (means, deadlines)
    assert (ran[0].seconds, ran[0].model.device) == (340.0, "cpu")
