"""The comparison of learning protocols: its cells, and its arithmetic on a table made by hand."""

import numpy as np
import pytest
import torch
from benchmarks.kit.recordings import Recording
from benchmarks.learning import BUDGETS, PROTOCOLS, Cell, cells, compared

NAMES = ("single shots", "drift-corrected", "median of 3")


def test_every_protocol_is_trained_with_every_seed_in_random_order():
    planned = cells(NAMES, 5, 60.0, 15.0)
    assert {(cell.protocol, cell.seed) for cell in planned} == {(name, seed) for name in NAMES for seed in range(5)}
    assert [cell.seed for cell in planned] == sorted(cell.seed for cell in planned)
    assert len({tuple(cell.protocol for cell in planned if cell.seed == seed) for seed in range(5)}) > 1
    assert planned == cells(NAMES, 5, 60.0, 15.0)


def test_protocols_differ_in_what_they_are_named_for_only(tmp_path):
    made = {name: Cell(protocol=name, seed=3, seconds=60.0, calibration_seconds=15.0) for name in PROTOCOLS}
    configs = {name: cell.config() for name, cell in made.items()}
    assert {(c.train.latency, c.train.repeats) for c in configs.values()} == {
        ("raw", 1),
        ("drift_corrected", 1),
        ("raw", 3),
        ("drift_corrected", 3),
    }
    alike = {"latency": "raw", "repeats": 1}
    without = [c.model_copy(update={"train": c.train.model_copy(update=alike)}) for c in configs.values()]
    assert all(config == without[0] for config in without)
    assert all(c.train.executed_seconds == 60 and c.seed == 3 for c in configs.values())
    assert len({cell.folder(tmp_path) for cell in made.values()}) == len(made)


def test_gains_are_paired_by_seed_and_sample():
    # 4 samples under 2 settings: the second is right everywhere and half as fast
    table = Recording(
        observations=torch.zeros(4, 2),
        quality=np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]]),
        fractions=np.array([[0.25, 0.5]] * 4),
        executed_ms=np.ones((4, 2)),
    )
    first, second = np.zeros(4, dtype=np.intp), np.ones(4, dtype=np.intp)
    by_name = {"single shots": [first, second], "drift-corrected": [second, second], "best fixed": [first, first]}
    chosen = {name: [dict.fromkeys(BUDGETS, row) for row in rows] for name, rows in by_name.items()}
    rows = {(row["budget"], row["protocol"]): row for row in compared(chosen, table)}
    row = rows["mean 0.40", "drift-corrected"]
    assert row["accuracy"] == [1.0, 1.0]
    assert row["mean_fraction"] == [0.5, 0.5]
    assert row["kept"] == [False, False]
    assert rows["mean 0.50", "drift-corrected"]["kept"] == [True, True]
    # against single shots: 0.5 with the first seed, 0 with the second; against the fixed setting 0.5 with both
    assert row["gain_over"]["single shots"][0] == pytest.approx(0.25)
    assert row["gain_over"]["best fixed"][0] == pytest.approx(0.5)
    assert row["choices"] == [[1, 1, 1, 1]] * 2
