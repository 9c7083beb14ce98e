"""chronostat knobs and chronostat rank-blocks, as a user types them, on the bundled model."""

import json
import signal
import time

import pytest
from PIL import Image

from chronostat.runs.store import RunStore
from chronostat.studies.block_ranking.importance import RANKING
from e2e.commands import ended, executions, refusal, sets, started, typed

CONFIG, DATA, MODEL, KNOB, UNLIKE, STORE = 2, 3, 4, 5, 7, 8
ONE_LEVEL = ("knobs.vision_tokens=[0.06]", "knobs.moe_topk=[1]", "knobs.block_skip=[[3, 4]]")


def refused(status, *words):
    said = typed(*words)
    assert said.status == status, said.err
    return refusal(said)


@pytest.fixture(scope="module")
def ranked_run(tmp_path_factory):
    """A tiny ranking of the bundled model's blocks; not to be changed."""
    folder = tmp_path_factory.mktemp("ranked") / "run"
    said = typed("rank-blocks", "--run-dir", folder, "--samples", "2", "--seconds", "1e6", "--keep", "6")
    assert said.status == 0, said.err
    return folder, said.out


@pytest.mark.slow
def test_knobs_says_what_the_bundled_model_has(tmp_path):
    file = tmp_path / "effects.json"
    said = typed("knobs", "--repeats", "12", "--new-tokens", "2", "--json", file, *sets(*ONE_LEVEL))
    assert said.status == 0, said.err
    assert "bundled demo_vlm: 8 settings (2 x 2 x 2)" in said.out
    assert "vision_tokens: max_patches of GotOcr2ImageProcessor" in said.out
    assert "values 272; 16" in said.out
    assert "vision_tokens: 0.06 is taken to 16, the nearest that can be asked for" in said.out
    assert "8 decoder blocks" in said.out
    data = json.loads(file.read_text())
    assert (data["settings"], data["source"]) == (8, "measured")
    assert data["absent"].keys() == {"image_keep", "drop_after"}
    assert data["nearest"] == {"vision_tokens": {"0.06": 16}}
    assert data["full"]["image_tokens"] == 272
    by_setting = {effect["knob"]: effect for effect in data["effects"]}
    assert by_setting["vision_tokens"]["work"]["image_tokens"] == 16
    assert by_setting["moe_topk"]["work"]["experts_per_token"] == 1
    assert by_setting["block_skip"]["work"]["blocks_run"] == 6
    for effect in data["effects"]:
        assert effect["removes_work"]
        assert effect["work"]["forwards"] == 2
        judged = effect["comparisons"]["prefill_ms"]  # on a busy machine every repeat may have been disturbed
        assert judged["pairs"] or judged["flags"]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with a random LLaVA 1.5 of the real image size, an image, and a file of samples."""
    from benchmarks.processors.families import FAMILIES

    folder = tmp_path_factory.mktemp("llava")
    pair = FAMILIES["LLaVA 1.5 (336 px)"].build()
    pair.model.save_pretrained(folder / "model")
    pair.processor.save_pretrained(folder / "model")
    pictures = {"train": ("a.png", "teal"), "validation": ("b.png", "navy"), "test": ("c.png", "olive")}
    for name, colour in pictures.values():
        Image.new("RGB", (64, 48), colour).save(folder / name)
    line = {"prompt": "a b", "answers": ["c"]}
    lines = [json.dumps({"id": split, "split": split, "image": name, **line}) for split, (name, _) in pictures.items()]
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_knobs_offers_fewer_image_tokens_where_the_processor_makes_a_fixed_number(llava, tmp_path):
    file = tmp_path / "effects.json"
    asked = sets('knobs.image_keep=["attention:64","pool:0.25"]', "knobs.drop_after=[1]", "knobs.block_skip=[[]]")
    request = ("--image", llava / "a.png", "--prompt", "a b", "--new-tokens", "2", "--repeats", "1")
    said = typed("knobs", llava / "model", *request, "--json", file, *asked)
    assert said.status == 0, said.err
    assert "values 1.0; attention:64; pool:0.25" in said.out
    data = json.loads(file.read_text())
    assert (data["settings"], data["source"], data["full"]["image_tokens"]) == (6, "measured", 576)
    tokens = {effect["value"]: effect["work"]["image_tokens"] for effect in data["effects"]}
    assert tokens == {"attention:64": 64, "pool:0.25": 144, 1: 576}
    assert all(effect["removes_work"] for effect in data["effects"])


@pytest.mark.slow
def test_a_run_offers_fewer_image_tokens_there(llava, tmp_path):
    config = tmp_path / "own.toml"
    config.write_text(f'[model]\npath = "{llava / "model"}"\n[data]\npath = "{llava / "own.jsonl"}"\n')
    said = typed("train", config, "--dry-run")
    assert said.status == 0, said.err
    assert "8 settings" in said.out  # four shares of the image tokens, by two sets of blocks
    assert "absent: drop_after: runs eagerly alone" in said.out
    said = typed("train", config, "--dry-run", *sets('knobs.image_keep=["mean:4"]'))
    assert said.status == KNOB
    assert "image_keep = 'mean:4' is not legal on this model; legal: 1.0, or a method and what it keeps" in said.err


@pytest.mark.slow
def test_knobs_of_a_request_of_ones_own(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    said = typed("knobs", "--image", tmp_path / "a.png", "--prompt", "What?", "--seconds", "1", *sets(*ONE_LEVEL))
    assert said.status == 0, said.err
    assert "executions; the limit of" in said.out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--image", "none.png", "--prompt", "x"), DATA, "cannot read the image none.png"),
        (("--prompt", "x"), CONFIG, "give --image FILE and --prompt TEXT together"),
        (sets("measure.threads=2"), CONFIG, "--set measure.threads=2: knobs takes keys of knobs and model.layout, and"),
        (sets("knobs.depth=[1]"), CONFIG, "unknown key 'knobs.depth'"),
        (sets("knobs.moe_topk=[9]"), KNOB, "moe_topk = 9 is not legal on this model"),
        (("--ranking", "none"), STORE, "none is no ranking: none does not exist; name what chronostat rank-blocks"),
        (("--ranking", "none", *sets("knobs.block_skip=[[1]]")), CONFIG, "each say what is left out; give one of them"),
    ],
)
def test_knobs_refuses(words, status, message):
    assert message in refused(status, "knobs", *words)


def test_knobs_of_no_model(tmp_path):
    assert "holds no config.json" in refused(MODEL, "knobs", tmp_path)


@pytest.mark.parametrize("words", [("--repeats", "0"), ("--new-tokens", "0"), ("--seconds", "0"), ("--depth", "3")])
def test_flags_of_knobs(words):
    said = typed("knobs", *words)
    assert said.status == CONFIG
    assert words[0] in said.err
    assert "Traceback" not in said.err


@pytest.mark.slow
def test_rank_blocks_prints_what_to_paste(ranked_run):
    folder, out = ranked_run
    ranking = json.loads((folder / RANKING).read_text())
    assert sorted(ranking["order"]) == list(range(8))
    assert f"[knobs]\nblock_order = {ranking['order']}" in out
    assert f"ranking: {folder / RANKING}" in out
    assert (ranking["model"], ranking["metric"], ranking["source"]) == ("bundled demo_vlm", "prefill_ms", "measured")
    assert ranking["conditions"]["threads"] == 1
    assert [kept["keep"] for kept in ranking["kept"]] == [6]
    store = RunStore.open(folder)
    # 2 samples under full and 8 single blocks, 2 under full and the set
    assert executions(store, "rank") == store.metadata["phases"]["rank"]["generate_calls"] == 2 * 9 + 2 * 2


@pytest.mark.slow
def test_the_printed_order_is_a_configuration(ranked_run):
    order = json.loads((ranked_run[0] / RANKING).read_text())["order"]
    said = typed("train", "--dry-run", *sets(f"knobs.block_order={order}"))
    assert said.status == 0, said.err


@pytest.mark.slow
def test_knobs_takes_a_ranking_of_this_model_only(ranked_run, tmp_path):
    folder, _ = ranked_run
    ranking = json.loads((folder / RANKING).read_text())
    words = ("knobs", "--repeats", "1", "--new-tokens", "1", *sets("knobs.vision_tokens=[272]", "knobs.moe_topk=[4]"))
    said = typed(*words, "--ranking", folder)
    assert said.status == 0, said.err
    assert f"block_skip={','.join(map(str, ranking['kept'][0]['skipped']))}" in said.out
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**ranking, "fingerprint": "0123456789ab"}))
    assert "belongs to model 0123456789ab" in refused(UNLIKE, *words, "--ranking", other)
    other.write_text(json.dumps({**ranking, "kept": []}))
    assert "was made without --keep" in refused(CONFIG, *words, "--ranking", other)
    other.write_text('{"order": [1]}')
    assert "as a ranking of blocks: model: Field required" in refused(STORE, *words, "--ranking", other)


@pytest.mark.slow
def test_a_ranking_that_has_ended_is_not_continued_nor_trained_in(ranked_run):
    folder, _ = ranked_run
    assert "has finished: its ranking is in" in refused(STORE, "rank-blocks", "--resume", folder)
    assert "already holds a run" in refused(STORE, "rank-blocks", "--run-dir", folder, "--samples", "2")
    assert "continue it with: chronostat rank-blocks --resume" in refused(STORE, "train", "--resume", folder)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--keep", "8"), CONFIG, "--keep 8: of the 8 blocks of this model 1 to 7 can be kept"),
        (("--data", "none.jsonl"), DATA, "cannot read the data file none.jsonl"),
        (("--resume", "none"), STORE, "none holds no run"),
        (("--resume", "none", "--samples", "3"), CONFIG, "give no other option with it"),
        (sets("data.speed=3"), CONFIG, "unknown key 'data.speed'"),
        (sets("train.seconds=3"), CONFIG, "--set train.seconds=3: rank-blocks takes keys of model, data and measure"),
        (sets("data.quality=bleu"), CONFIG, "unknown quality 'bleu'"),
        (("/none",), CONFIG, "without data.path: the bundled task is made for the bundled model"),
    ],
)
def test_rank_blocks_refuses(tmp_path, words, status, message):
    folder = () if "--resume" in words else ("--run-dir", tmp_path / "run")
    assert message in refused(status, "rank-blocks", *words, *folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [("--samples", "1"), ("--seconds", "0"), ("--keep", "0"), ("--method", "best")])
def test_flags_of_rank_blocks(words):
    said = typed("rank-blocks", *words)
    assert said.status == CONFIG
    assert words[0] in said.err
    assert "Traceback" not in said.err


def test_a_training_run_is_no_ranking(tmp_path):
    RunStore.create(tmp_path / "run", {"config": {}}).close()
    assert "holds no ranking of blocks" in refused(STORE, "rank-blocks", "--resume", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_ranking_that_is_killed_goes_on(tmp_path, how):
    folder = tmp_path / "run"
    words = ("rank-blocks", "--run-dir", folder, "--samples", "4", "--seconds", "1e6", "--keep", "6")
    process = started(*words, cwd=tmp_path)
    while process.poll() is None and len(list((folder / "executions").glob("*.parquet"))) < 3 + 1:
        time.sleep(0.05)
    process.send_signal(how)
    said = ended(process)
    assert said.status == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert f"continue with: chronostat rank-blocks --resume {folder}" in said.err
    store = RunStore.open(folder)
    before = store.trials("rank")
    assert 1 <= len(before) < 8
    said = typed("rank-blocks", "--resume", folder)
    assert said.status == 0, said.err
    after = RunStore.open(folder).trials("rank")
    assert after[: len(before)] == before
    assert [trial.index for trial in after] == list(range(8))
    assert sorted(json.loads((folder / RANKING).read_text())["order"]) == list(range(8))
