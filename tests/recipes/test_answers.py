"""Tables through `generate()`: equal to training's own forward, resumable, and of one model only."""

import json

import pytest
import torch
from recipes.demo_vlm import forward
from recipes.demo_vlm.answers import draw_questions, generate_answers, measure_table, preprocess
from recipes.demo_vlm.batches import GRIDS, SLOT_TOKENS, SLOTS, SceneBatches, encode
from recipes.demo_vlm.build import ASSISTANT, BLOCKS, build_model, build_processor, vocabulary
from recipes.demo_vlm.evaluate import count_answers
from recipes.demo_vlm.losses import right_answers
from recipes.demo_vlm.table import accuracies, pack_bits, read_table, shares, unpack_bits

from chronostat.data.demo.task import UNSEEN_SUFFIX
from chronostat.errors import DataError
from chronostat.knobs.registry import applied
from chronostat.models.load import Vlm, fingerprint, load_vlm
from chronostat.records import Setting

FULL = Setting(vision_tokens=272, moe_topk=4, block_skip=())


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    model = build_model().eval()
    return Vlm(model=model, processor=build_processor(), name="untrained", fingerprint=fingerprint(model))


@pytest.fixture(scope="module")
def bundled():
    return load_vlm(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def batch():
    return next(iter(SceneBatches(key=(0, 9), split="validation", size=2, grids=GRIDS)))


@pytest.mark.parametrize(("grid", "blocks", "top_k"), [(4, 8, 4), (1, 8, 4), (2, 4, 1), (3, 6, 2)])
@torch.no_grad()
def test_the_packed_forward_equals_that_of_the_library(untrained, batch, grid, blocks, top_k):
    model = untrained.model
    image = forward.see(model, batch.tiles[grid])
    packed = forward.read(model, image, batch.tokens, kept=forward.KEPT_BLOCKS[blocks], top_k=top_k).logits
    skipped = tuple(index for index in range(BLOCKS) if index not in forward.KEPT_BLOCKS[blocks])
    where = forward.layout(image.shape[1], image.device)
    context = torch.full((image.shape[1],), model.config.image_token_id)
    for scene, slot in ((0, 0), (1, 7), (1, len(SLOTS) - 1)):
        ids = torch.cat([where.before, context, where.after, batch.tokens[scene, slot]])[None]
        pixels = (batch.tiles[grid][scene].float() / 255 - 0.5) / 0.5
        with applied(Setting(moe_topk=top_k, block_skip=skipped), model, None):
            alone = model(input_ids=ids, pixel_values=pixels).logits[0, -SLOT_TOKENS:]
        assert (packed[scene, slot] - alone).abs().max() < 1e-4


@torch.no_grad()
def test_counting_with_the_right_tokens_given_says_what_greedy_generation_does(bundled, batch):
    model, processor = bundled.model, bundled.processor
    image = forward.see(model, batch.tiles[2])
    logits = forward.read(model, image, batch.tokens, kept=forward.KEPT_BLOCKS[4], top_k=1).logits
    counted = right_answers(logits, batch)
    mark = processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    where = forward.layout(image.shape[1], image.device)
    context = [model.config.image_token_id] * image.shape[1]
    tiles = (batch.tiles[2].float() / 255 - 0.5) / 0.5
    generated = torch.zeros_like(counted)
    with applied(Setting(moe_topk=1, block_skip=(2, 3, 4, 5)), model, None):
        for scene in range(len(tiles)):
            prompts, answers = [], []
            for tokens, answered in zip(batch.tokens[scene].tolist(), batch.answered[scene].tolist(), strict=True):
                question = tokens[: tokens.index(mark) + 1]
                prompts.append([*where.before.tolist(), *context, *where.after.tolist(), *question])
                reply = [token for token, counts in zip(tokens, answered, strict=True) if counts]
                answers.append(processor.decode(reply, skip_special_tokens=True).strip())
            same = tiles[scene].expand(len(prompts), *tiles[scene].shape)
            found = generate_answers(model, processor, same, prompts)
            generated[scene] = torch.tensor([a == b for a, b in zip(found, answers, strict=True)])
    assert torch.equal(counted, generated)


def test_prompts_padded_on_the_left_are_answered_as_they_are_alone(bundled):
    scenes, questions = draw_questions("validation", 1)
    level = preprocess(bundled, Setting(vision_tokens=16, moe_topk=4, block_skip=()), scenes, questions, workers=0)
    kinds = ["background", "read", "sum"]  # of different lengths
    together = generate_answers(
        bundled.model,
        bundled.processor,
        level.tiles.expand(3, *level.tiles.shape[1:]),
        [level.ids[k][0] for k in kinds],
    )
    alone = [generate_answers(bundled.model, bundled.processor, level.tiles, level.ids[kind])[0] for kind in kinds]
    assert together == alone


def test_the_model_gets_prompt_and_pixels_and_nothing_else(bundled):
    scenes, questions = draw_questions("test", 1)
    level = preprocess(bundled, FULL, scenes, questions, workers=0)
    assert level.tiles.shape == (1, 17, 3, 32, 32)
    for kind, asked in questions.items():
        read = bundled.processor.decode(level.ids[kind][0], skip_special_tokens=True)
        words = "".join(character for character in asked[0].prompt.lower() if character.isalnum() or character == " ")
        assert read.split() == words.split()
        assert bundled.processor.tokenizer.unk_token_id not in level.ids[kind][0]


def test_training_packs_the_answer_after_the_mark_and_asks_no_unseen_wording(batch):
    mark = build_processor().tokenizer.convert_tokens_to_ids(ASSISTANT)
    for tokens, answered in zip(
        batch.tokens.flatten(0, 1).tolist(), batch.answered.flatten(0, 1).tolist(), strict=True
    ):
        assert answered.index(True) == tokens.index(mark) + 1
    assert encode("Add all digits.", "17")[1].count(True) == 3  # two digits and the end


def test_the_model_has_a_token_for_each_word(bundled):
    assert bundled.model.config.text_config.vocab_size == len(vocabulary())


def test_batches_of_equal_keys_are_equal(batch):
    again = next(iter(SceneBatches(key=(0, 9), split="validation", size=2, grids=GRIDS)))
    assert torch.equal(again.tokens, batch.tokens)
    assert torch.equal(again.tiles[4], batch.tiles[4])


def test_questions_of_a_table_are_the_same_on_every_look_and_unseen_only_in_the_test_split():
    scenes, questions = draw_questions("test", 2)
    assert (scenes, questions) == draw_questions("test", 2)
    assert scenes[:1] == draw_questions("test", 1)[0]
    assert set(questions) == {*shares(), *(kind + UNSEEN_SUFFIX for kind in shares())}
    assert set(draw_questions("validation", 1)[1]) == set(shares())


def _measure(vlm, out, **changed):
    arguments = {"split": "validation", "per_kind": 1, "batch": 2, "workers": 0, "seconds": float("inf"), **changed}
    return measure_table(vlm, out=out, **arguments)


@pytest.mark.slow
def test_a_table_goes_on_where_it_stopped(untrained, tmp_path, monkeypatch):
    out = tmp_path / "table.json"
    few = {"vision_tokens": (16,), "moe_topk": (), "block_skip": ()}  # full is always added
    from recipes.demo_vlm import answers

    find = answers.find_space
    monkeypatch.setattr(answers, "find_space", lambda model, processor, _: find(model, processor, few))
    assert _measure(untrained, out, seconds=-1.0).rows == []
    whole = _measure(untrained, tmp_path / "whole.json")
    assert whole.settings == {(272, 4, ()), (16, 4, ())}

    lines = json.loads((tmp_path / "whole.json").read_text())
    lines["rows"] = [row for row in lines["rows"] if row["vision_tokens"] == 272]
    out.write_text(json.dumps(lines))
    asked = []
    answer = answers._answer_setting
    monkeypatch.setattr(answers, "_answer_setting", lambda vlm, s, *rest: asked.append(s) or answer(vlm, s, *rest))
    resumed = _measure(untrained, out)
    assert [setting["vision_tokens"] for setting in asked] == [16]
    assert resumed == read_table(out) == whole


def test_a_table_of_single_knobs_turns_one_at_a_time(untrained, tmp_path, monkeypatch):
    from recipes.demo_vlm import answers

    monkeypatch.setattr(answers, "_answer_setting", lambda vlm, setting, level, asked, batch: [_row_of(setting)])
    settings = _measure(untrained, tmp_path / "table.json", single_knobs=True).settings
    assert len(settings) == 8  # full, three fewer tokens, two fewer experts, two fewer blocks
    assert all((tokens < 272) + (top_k < 4) + bool(skipped) <= 1 for tokens, top_k, skipped in settings)


def _row_of(setting):
    return {**setting, "block_skip": list(setting["block_skip"]), "kind": "read", "n": 1, "right": 1}


def test_a_table_of_other_weights_is_refused(untrained, bundled, tmp_path):
    out = tmp_path / "table.json"
    out.write_text(json.dumps({"page": {"fingerprint": "0" * 12, "split": "validation", "per_kind": 1}, "rows": []}))
    with pytest.raises(DataError, match=f"fingerprint is 000000000000, not {untrained.fingerprint}"):
        _measure(untrained, out)


def test_a_missing_and_a_strange_table_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="measure it with: python -m recipes"):
        read_table(tmp_path / "none.json")
    (tmp_path / "strange.json").write_text("[]")
    with pytest.raises(DataError, match="is no table of this recipe"):
        read_table(tmp_path / "strange.json")


def test_bits_come_back():
    right = [True, False, True, True, False, False, True, False, True, True]
    row = {"vision_tokens": 16, "moe_topk": 1, "block_skip": [], "kind": "read", "n": 10, "right": 6}
    assert unpack_bits({**row, "bits": pack_bits(right)}).tolist() == right
    assert accuracies([row]) == {(16, 1, ()): {"read": 0.6}}


@pytest.mark.slow
def test_counting_covers_all_settings_and_kinds(untrained):
    rows = count_answers(untrained.model, split="validation", scenes=1, seconds=float("inf"), workers=0, batch=1)
    assert len({(row["vision_tokens"], row["moe_topk"], tuple(row["block_skip"])) for row in rows}) == 36
    assert {row["kind"] for row in rows} == set(SLOTS)
    assert all(row["n"] == SLOTS.count(row["kind"]) for row in rows)


def test_every_scene_of_a_batch_is_asked_every_slot(batch):
    assert batch.tokens.shape == (2, len(SLOTS), SLOT_TOKENS)
