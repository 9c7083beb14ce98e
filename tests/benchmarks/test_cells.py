"""What resumable benchmarks share: cells, blocks and questions."""

import json

import pytest
import torch
from benchmarks.kit import question
from benchmarks.kit.blocks import TimeBox, dropping, fill_rows
from benchmarks.kit.cells import CellFile
from benchmarks.kit.estimates import ratio_interval, row_ratio
from benchmarks.kit.models import build
from benchmarks.kit.question import Question

from chronostat.errors import MeasurementError


def test_ratio_interval_is_that_of_the_paired_ratios():
    # ratios 1..6 of 6 pairs: the smallest and the largest bound the median with 1 - 2/64 = 97 %
    estimate = ratio_interval([2, 4, 6, 8, 10, 12], [2] * 6)
    assert (estimate.low, estimate.point, estimate.high) == (1, 3.5, 6)
    rows = [{"timing": {"total_ms": 2 * ratio}, "bare_ms": 2} for ratio in range(1, 7)]
    assert row_ratio(rows, "timing.total_ms", "bare_ms", digits=1) == "3.5 [1.0, 6.0]"


def test_cells_go_on_under_like_conditions_only(tmp_path, capsys):
    model = build("toy-qwen", "cpu", torch.float32).model
    first = CellFile("trial", tmp_path, "abc")
    first.open("m:1", model, tokens=8)["rows"] = [1.234567891]
    first.save()
    again = CellFile("trial", tmp_path, "def").open("m:1", model, tokens=8)
    assert again["rows"] == [1.23457]
    assert again["commit"] == "abc"
    assert "rows" not in CellFile("trial", tmp_path, "def").open("m:1", model, tokens=9)
    assert "tokens: 8 != 9" in capsys.readouterr().out
    stored = json.loads((tmp_path / "trial.json").read_text())
    stored["cells"]["m:1"]["conditions"]["device"] = "another"
    (tmp_path / "trial.json").write_text(json.dumps(stored))
    assert "rows" not in CellFile("trial", tmp_path, "def").open("m:1", model, tokens=8)
    assert "device: another != cpu" in capsys.readouterr().out


def trial(**parts):
    return Question(name="trial", text=None, cells="toy-qwen:1,toy-qwen", tokens=3, **parts)


def test_a_benchmark_goes_on_with_what_is_missing_and_tells_a_failure_until_it_is_mended(tmp_path, capsys):
    asked = []

    def answer(broken, *flags):
        def measure(work):
            asked.append(work.key)
            cell = work.open()
            if work.tiles == broken:
                raise MeasurementError("no stages")
            cell["rows"] = [work.tiles]
            work.file.save()

        asking = trial(
            is_complete=lambda cell, options, model, tiles: cell.get("rows") == [tiles] and model == "toy-qwen",
            measure=measure,
            table=lambda cells: " ".join(f"{key} {cell.get('failed')}" for key, cell in cells.items()),
            default_tiles=2,
        )
        return asking.answer(asking.parser().parse_args(["--out", str(tmp_path), "--commit", "abc", *flags]))

    assert answer(2) == 1
    assert capsys.readouterr().out.endswith("\ntoy-qwen:1 None toy-qwen:2 MeasurementError: no stages\n")
    assert answer(None) == 0
    assert asked == ["toy-qwen:1", "toy-qwen:2", "toy-qwen:2"]
    assert capsys.readouterr().out.endswith("\ntoy-qwen:1 None toy-qwen:2 None\n")
    assert answer(1, "--show") == 0
    assert capsys.readouterr().out == "toy-qwen:1 None toy-qwen:2 None\n"


def test_a_cell_is_named_by_model_tiles_mode_and_card(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 NVL")
    assert (question.accelerator("cuda"), question.accelerator("cpu")) == ("H200", "")
    monkeypatch.setattr(question, "accelerator", lambda device: "H200")
    names = []
    asking = trial(
        is_complete=lambda *_: False,
        measure=lambda work: names.append(work.key),
        table=lambda cells: "",
        mode=lambda options: "compiled",
    )
    asking.answer(asking.parser().parse_args(["--out", str(tmp_path), "--cells", "toy-qwen:1"]))
    assert names == ["toy-qwen:1 compiled H200"]


class OneBlock(TimeBox):
    """Time for a block whose length is not known yet, and for no other."""

    def allows(self, seconds):
        return seconds == 0


def test_a_block_that_cannot_be_measured_is_no_row_and_too_many_of_them_end_it(tmp_path):
    def block(number):
        if number % 2:
            raise MeasurementError(f"block {number}")
        return {"number": number}

    cell, file = {}, CellFile("trial", tmp_path, "abc")
    assert fill_rows(cell, 3, TimeBox(None), file, dropping(cell, 3, block))
    assert cell == {"rows": [{"number": 0}, {"number": 2}, {"number": 4}], "dropped": ["block 1", "block 3"]}
    assert fill_rows(cell, 3, TimeBox(None), file, pytest.fail)  # nothing is missing
    assert not fill_rows(cell, 6, OneBlock(None), file, lambda number: {"number": number})
    assert [row["number"] for row in cell["rows"]] == [0, 2, 4, 3]
    broken = {}
    with pytest.raises(MeasurementError, match="block 1"):
        fill_rows(broken, 2, TimeBox(None), file, dropping(broken, 2, lambda number: block(1)))
    assert broken == {"rows": [], "dropped": ["block 1"] * 3}


def test_time_box():
    assert TimeBox(None).allows(1e9)
    assert TimeBox(100).allows(50)
    assert not TimeBox(100).allows(101)
