"""What the demo says of serving, by what its controller counts."""

from pathlib import Path

from chronostat.cli.actions.demo import _how_to_serve
from chronostat.config import load_config


def test_a_controller_that_counts_what_callers_wait_can_be_served():
    config = load_config(None, ["measure.latency_metric=request_ms"])
    assert _how_to_serve(config, Path("runs/a")) == "next: chronostat serve runs/a"


def test_any_other_has_to_be_trained_for_it():
    said = _how_to_serve(load_config(None), Path("runs/a"))
    assert "chronostat demo --set measure.latency_metric=request_ms --run-dir runs/serving" in said
    assert said.endswith("then chronostat serve runs/serving (docs/serving.md)")
