"""The benchmark of ``image_keep`` on a toy: what it counts, and what its table holds."""

import json

import pytest
from benchmarks.image_keep import IMAGE_KEEP, settings_of
from benchmarks.kit.models import build

from chronostat.tokens.methods import METHODS


@pytest.mark.parametrize("name", ["toy-llava", "toy-paligemma", "toy-qwen"])
def test_methods_that_a_model_refuses_are_left_out(name, monkeypatch):
    import torch

    built = build(name, "cpu", torch.float32)
    expected = [f"image_keep={method}:{kept}" for kept in (2, 4) for method in ("pool", "attention")]
    assert settings_of(built, "pool,attention", "2,4") == ["full", *expected]
    monkeypatch.setattr(METHODS["attention"], "objection", lambda model: "no")
    assert settings_of(built, "pool,attention", "2,4") == ["full", *expected[::2]]


def test_every_setting_is_counted_and_timed_by_both_engines(tmp_path, capsys):
    asked = ["--cells", "toy-llava:1", "--kept", "3", "--methods", "pool,attention", "--blocks", "1", "--tokens", "2"]
    options = IMAGE_KEEP.parser().parse_args([*asked, "--out", str(tmp_path), "--commit", "none"])
    assert IMAGE_KEEP.answer(options) == 0
    cells = json.loads((tmp_path / "image_keep.json").read_text())["cells"]  # beside those that were recorded before
    (cell,) = (cell for name, cell in cells.items() if name.startswith("toy-llava:1"))
    assert cell["image_tokens"] == {"full": 64, "image_keep=pool:3": 3, "image_keep=attention:3": 3}
    (row,) = cell["rows"]
    assert set(row) == {f"{engine}: {setting}" for engine in ("eager", "graph") for setting in cell["settings"]}
    assert all(value > 0 for value in cell["choosing_ms"].values())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| toy-llava:1")]
    assert [line.split(" | ")[1:3] for line in lines] == [
        ["full", "64"],
        ["image_keep=pool:3", "3"],
        ["image_keep=attention:3", "3"],
    ]
