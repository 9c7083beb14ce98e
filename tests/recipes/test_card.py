"""Costs, card and picture: written from measured files, refused for other weights."""

import json

import pytest
import torch
from recipes.demo_vlm.__main__ import main
from recipes.demo_vlm.card import read_seeds, write_card
from recipes.demo_vlm.costs import cost_shares, measure_costs, read_costs, write_costs
from recipes.demo_vlm.picture import Panel, choose_panels, draw_picture
from recipes.demo_vlm.table import COLUMNS, FULL, Table, pack_bits, shares, write_table

from chronostat.data.demo import DemoTask
from chronostat.data.demo.task import UNSEEN_SUFFIX
from chronostat.errors import DataError
from chronostat.models.load import load_vlm


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundled():
    return load_vlm(device="cpu", dtype="float32")


def _row(setting, kind, right):
    tokens, top_k, skipped = setting
    row = {"vision_tokens": tokens, "moe_topk": top_k, "block_skip": list(skipped), "kind": kind}
    return {**row, "n": len(right), "right": sum(right), "bits": pack_bits(right)}


@pytest.fixture
def results(tmp_path, bundled):
    """Files as the verbs write them, with made-up answers."""
    page = {"fingerprint": bundled.fingerprint, "split": "test", "per_kind": 4, "device": "cpu"}
    page |= {"torch": "2", "transformers": "5", "batch": 4}
    kinds = [*shares(), *(kind + UNSEEN_SUFFIX for kind in shares())]
    rows = [_row(setting, kind, [True, True, True, setting == FULL]) for setting in COLUMNS.values() for kind in kinds]
    for seed in (0, 1):
        other = {} if seed == 0 else {"fingerprint": "f" * 12}
        write_table(tmp_path / f"test-seed{seed}.json", Table(page={**page, **other}, rows=rows))
        plan = {"seed": seed, "seconds": [40.0, 400.0], "batch": 128, "learning_rate": 0.002}
        plan |= {"few_tiles": [0.7, 0.1, 0.1, 0.1], "few_blocks": 0.04, "few_experts": 0.05}
        curve = [{"plan": plan, "torch": "2", "piece": 0}, {"stage": 1, "step": 300}, {"stage": 2, "step": 1_234}]
        (tmp_path / f"curve-seed{seed}.jsonl").write_text("\n".join(map(json.dumps, curve)) + "\n")
    costs = [
        {"vision_tokens": tokens, "moe_topk": top_k, "block_skip": list(skipped), "prefill_ms": 10.0}
        | {"share": tokens / 272 * (0.9 if top_k == 1 else 1.0), "share_low": 0.1, "share_high": 1.0}
        for tokens, top_k, skipped in COLUMNS.values()
    ]
    conditions = {"cpu": "a processor", "threads": 1, "torch": "2", "transformers": "5", "dtype": "float32"}
    page = {"fingerprint": bundled.fingerprint, "samples": 40, "conditions": conditions}
    write_costs(tmp_path / "costs.json", {**page, "settings": costs})
    return tmp_path


def test_the_card_has_every_number_filled_in(results, bundled):
    write_card(
        results / "README.md", bundled, read_seeds(results), read_costs(results / "costs.json"), "Tried: nothing else."
    )
    card = (results / "README.md").read_text()
    assert "{{" not in card
    assert f"Fingerprint `{bundled.fingerprint}`" in card
    assert "1234 steps of 400 s" in card
    assert "| background | 1.000 | 0.750 |" in card  # full, then 160 tokens
    assert "| demand | seed0 | seed1 |" in card
    assert "only the kinds that look" in card
    assert "Tried: nothing else." in card


def test_a_card_for_other_weights_is_refused(results, bundled):
    seeds = [seed for seed in read_seeds(results) if seed.name == "seed1"]
    with pytest.raises(
        DataError, match=f"the shipped model is {bundled.fingerprint}, but the tables are of seed1: fff"
    ):
        write_card(results / "README.md", bundled, seeds, read_costs(results / "costs.json"), "")


def test_missing_results_say_what_to_do(tmp_path, results):
    with pytest.raises(DataError, match="holds no test-seed"):
        read_seeds(tmp_path / "empty")
    (results / "curve-seed1.jsonl").unlink()
    with pytest.raises(DataError, match=r"put curve\.jsonl of its training there as curve-seed1"):
        read_seeds(results)
    with pytest.raises(DataError, match="measure them with"):
        read_costs(tmp_path / "empty" / "costs.json")


def test_the_verb_gap_prints_tables_gaps_and_verdicts(results, capsys, monkeypatch, tmp_path):
    files = ["--table", str(results / "test-seed0.json"), "--costs", str(results / "costs.json")]
    files += ["--kept", str(tmp_path / "none.json")]
    monkeypatch.setattr("sys.argv", ["recipes.demo_vlm", "gap", *files])
    main()
    printed = capsys.readouterr().out
    assert "mean over the mix" in printed
    assert "hindsight" in printed
    assert "met     full: at least 0.95 overall: 1.000" in printed


def test_an_error_ends_the_command_with_its_own_code(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["recipes.demo_vlm", "gap", "--table", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == DataError.exit_code
    assert "there is no table" in capsys.readouterr().err


@pytest.mark.slow
def test_costs_are_shares_of_full_on_the_same_sample(bundled, tmp_path):
    costs = measure_costs(bundled, DemoTask().split("validation")[:1])
    write_costs(tmp_path / "costs.json", costs)
    again = read_costs(tmp_path / "costs.json")
    assert again == json.loads(json.dumps(costs))
    share = cost_shares(again)
    assert len(share) == 36
    assert share[FULL] == 1.0
    assert 0 < share[16, 1, (2, 3, 4, 5)] < 1
    assert again["conditions"]["threads"] == 1


def test_each_scene_shows_the_cheapest_setting_that_answers_it(bundled, monkeypatch):
    from recipes.demo_vlm import picture

    cheap = (16, 1, (2, 3, 4, 5))
    share = {FULL: 1.0, (80, 4, ()): 0.4, cheap: 0.2}
    monkeypatch.setattr(
        picture, "_is_right", lambda vlm, sample, setting: setting != cheap or sample.kind == "background"
    )
    panels = choose_panels(bundled, DemoTask().split("validation")[:200], share)
    assert [panel.setting for panel in panels] == [cheap, (80, 4, ()), (80, 4, ()), (80, 4, ())]
    monkeypatch.setattr(picture, "_is_right", lambda vlm, sample, setting: True)
    with pytest.raises(DataError, match="of kind read needs more than the cheapest setting"):
        choose_panels(bundled, DemoTask().split("validation")[:200], share)


def test_the_picture_is_small(tmp_path):
    scenes = [sample.load_images()[0] for sample in DemoTask().split("validation")[:4]]
    panels = [Panel(scene, "How many points in total do the shapes have?", "12", FULL, 1.0) for scene in scenes]
    draw_picture(tmp_path / "images" / "scenes.png", panels)
    assert (tmp_path / "images" / "scenes.png").stat().st_size < 300_000
