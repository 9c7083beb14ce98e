"""Several whole runs beside each other: verdicts pooled over seeds."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.whole_runs import pool, pooled

from chronostat.errors import StoreError
from chronostat.records import Budget
from stand_ins.sample_run import around, validation, write_run

DEADLINE = Budget(kind="deadline", fraction=0.8)


def shifted(verdict, points, *, kept=True):
    """The same with gains over every rival that are so much higher."""
    scores = tuple(
        replace(
            score,
            gain=None if score.gain is None else around(score.gain.point + points, 0.01),
            kept=kept if score.policy == "controller" else score.kept,
        )
        for score in verdict.scores
    )
    return replace(verdict, scores=scores)


def test_each_run_gives_one_value():
    one = validation()
    budget = next(score.budget for score in one.scores if score.budget.kind == "mean")
    found = pooled(budget, [one, shifted(one, 0.1, kept=False)])
    first = next(s for s in one.scores if s.budget == budget and s.policy == "best fixed").gain.point
    assert found.gains["best fixed"] == pytest.approx((first, first + 0.1))
    assert found.kept["controller"][1] is False
    own = next(s for s in one.scores if s.budget == budget and s.policy == "controller")
    assert found.latency_over_budget == pytest.approx([own.mean_ms.point / own.budget_ms] * 2)
    assert found.accuracy == pytest.approx([own.accuracy.point] * 2)


def test_a_deadline_is_told_by_its_quantile():
    one = validation()
    own = next(s for s in one.scores if s.budget.kind == "deadline" and s.policy == "controller")
    assert pooled(own.budget, [one]).latency_over_budget == pytest.approx([own.p95_ms / own.budget_ms])


def test_the_table_of_runs_that_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.kit.results.RESULTS", tmp_path / "results")
    for seed in range(3):
        write_run(tmp_path / "runs" / f"seed{seed}")
    write_run(tmp_path / "runs" / "seed3", until="train")  # not judged yet
    pool(tmp_path / "runs", "whole_runs_of_a_test")
    printed = capsys.readouterr().out
    one = validation()
    gains = [s.gain.point for s in one.scores if s.policy == "best fixed"]
    for gain in gains:
        assert f"{100 * gain:+.1f} to {100 * gain:+.1f}" in printed
    assert f"{3 * one.samples:,} judged samples of 3 runs" in printed
    assert (tmp_path / "results" / "whole_runs_of_a_test.json").is_file()
    assert np.isfinite(gains).all()


def test_without_a_judged_run_it_says_how_to_make_one(tmp_path):
    with pytest.raises(StoreError, match=r"holds no judged run; make some with: python -m benchmarks\.whole_runs run"):
        pool(tmp_path, "nothing")
