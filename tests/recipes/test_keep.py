"""``image_keep`` in batches: the answers are those of single executions, and its table joins that of tiles."""

import json

import pytest
import torch
from recipes.demo_vlm.answers import draw_questions, preprocess
from recipes.demo_vlm.costs import cost_shares
from recipes.demo_vlm.gap import measured, setting_text
from recipes.demo_vlm.keep import SETTINGS, TOKENS, kept_answers, kept_lines, measure_kept
from recipes.demo_vlm.table import FULL, pack_bits, read_table, setting_of, shares

from chronostat.knobs.registry import applied
from chronostat.tokens.methods import METHODS


@pytest.fixture(scope="module")
def asked(bundled):
    torch.set_num_threads(1)
    scenes, questions = draw_questions("validation", 3)
    kinds = {"read": questions["read"]}
    return preprocess(bundled, SETTINGS[0], scenes, kinds, workers=0), kinds


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == "prompt" else pytest.mark.slow) for name in METHODS]
)
def test_answers_in_batches_are_those_of_single_requests(bundled, asked, method):
    level, questions = asked
    for kind in questions:
        together = kept_answers(bundled, METHODS[method], 16, level.tiles, level.ids[kind])
        setting = next(each for each in SETTINGS if each["image_keep"] == f"{method}:16")
        with applied(setting, bundled.model, bundled.processor):
            for index, answer in enumerate(together):
                ids = torch.tensor([level.ids[kind][index]])
                output = bundled.model.generate(
                    input_ids=ids, pixel_values=level.tiles[index], max_new_tokens=8, do_sample=False
                )
                new = output[0, ids.shape[1] - 272 + 16 :]
                assert bundled.processor.decode(new, skip_special_tokens=True).strip() == answer


@pytest.mark.slow
def test_a_table_that_was_begun_goes_on(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.demo_vlm.keep.SETTINGS", SETTINGS[:1] + SETTINGS[3:5])
    asked = {"out": tmp_path / "kept.json", "split": "test", "per_kind": 1, "batch": 1, "workers": 0}
    first = measure_kept(bundled, **asked, seconds=0.0)
    assert first.rows == []
    whole = measure_kept(bundled, **asked, seconds=1e9)
    assert [row["image_keep"] for row in whole.rows] == ["pool:16"] * 14 + ["stride:160"] * 14
    again = measure_kept(bundled, **asked, seconds=1e9)
    assert again.rows == whole.rows == read_table(asked["out"]).rows
    assert kept_lines(whole.rows)[0] == ["kind", "stride:160", "pool:16"]


def rows_of(right, **setting):
    return [
        {"vision_tokens": 272, "moe_topk": 4, "block_skip": []}
        | setting
        | {"kind": kind, "n": 2, "right": sum(right), "bits": pack_bits(right)}
        for kind in shares()
    ]


def test_its_settings_join_those_of_tiles():
    rows = [*rows_of([True, True]), *rows_of([True, False], image_keep="pool:80")]
    costs = {"settings": [{**rows[0], "share": 1.0}, {**rows[-1], "share": 0.5}]}
    task = measured(rows, cost_shares(json.loads(json.dumps(costs))))
    assert task.settings == ((272, 4, (), "pool:80"), FULL)  # the cheaper one first
    assert task.cost.tolist() == [0.5, 1.0]
    assert task.accuracy.mean(axis=1).tolist() == [0.5, 1.0]
    assert setting_text(setting_of(rows[-1])) == "272 tokens, pool:80, top_k 4, all blocks"


def test_tiles_stand_beside_the_methods_at_equal_tokens():
    rows = [*rows_of([True, True], vision_tokens=80), *rows_of([True, False], image_keep="norm:80")]
    head, first, *_, mean = kept_lines(rows)
    assert (head, first) == (["kind", "tiles:80", "norm:80"], [next(iter(shares())), "1.000", "0.500"])
    assert mean == ["mean over the mix", "1.000", "0.500"]


def test_every_method_is_measured_with_every_number():
    assert len(SETTINGS) == 1 + len(METHODS) * len(TOKENS)
    assert SETTINGS[0]["image_keep"] == 1.0
