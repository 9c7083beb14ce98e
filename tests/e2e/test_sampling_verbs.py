"""What the verbs do with a checkpoint that asks for sampling, as a user types them."""

import json

import pytest

from chronostat.models.load import BUNDLED, load_vlm
from chronostat.runs.store import RunStore
from e2e.commands import TINY, refusal, sets, typed

pytestmark = pytest.mark.slow  # whole runs of verbs

NOTE = "the checkpoint's generation_config asks for do_sample = True, temperature = 30.0, top_k = 0; answers are greedy"
SAMPLED = "sampled, temperature=30.0, top_k=0"
CONFIG = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bundled model as somebody would publish it who likes surprises."""
    folder = tmp_path_factory.mktemp("published") / "hot"
    folder.mkdir()
    for file in BUNDLED.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    hot = {"do_sample": True, "temperature": 30.0, "top_k": 0, "eos_token_id": 4, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(hot))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory, bundled):
    """Own samples, enough for a tiny run."""
    from chronostat.data.demo import DemoTask

    folder = tmp_path_factory.mktemp("data")
    lines = []
    for split, count in (("train", 6), ("validation", 10), ("test", 4)):
        for sample in DemoTask().split(split)[:count]:
            name = f"{split}-{len(lines)}.png"
            sample.load_images()[0].save(folder / name)
            line = {"id": name, "image": name, "prompt": sample.prompt, "answers": list(sample.references)}
            lines.append(json.dumps({**line, "split": split}))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return folder / "samples.jsonl"


def said_once(said):
    """Whether the note is said exactly once, whatever the width of the terminal."""
    return " ".join(said.out.split()).count(NOTE) == 1


def measured(checkpoint, tmp_path, *words):
    file = tmp_path / "measured.json"
    request = ("--task", "bundled", "--requests", "2", "--repeats", "2", "--new-tokens", "4")
    said = typed("measure", checkpoint, *request, "--json", file, *words)
    assert said.status == 0, said.err
    (arm,) = json.loads(file.read_text())["arms"]
    executions = sorted((each["sample_id"], each["sampling_seed"] or 0, each["answer"]) for each in arm["executions"])
    return said, arm["conditions"]["decoding"], executions


def test_measure_is_greedy_and_says_so_once(checkpoint, tmp_path):
    said, decoding, executions = measured(checkpoint, tmp_path)
    assert said_once(said)
    assert "decoding greedy" in " ".join(said.out.split())
    assert decoding == "greedy"
    assert len({(sample, answer) for sample, _, answer in executions}) == 2  # both repeats answer alike


def test_measure_samples_from_the_seed(checkpoint, tmp_path):
    said, decoding, executions = measured(checkpoint, tmp_path, "--sample")
    assert NOTE not in " ".join(said.out.split())
    assert decoding == SAMPLED
    assert len({seed for _, seed, _ in executions}) == len({answer for *_, answer in executions}) == 4
    assert measured(checkpoint, tmp_path, "--sample", "--seed", "0")[2] == executions
    assert measured(checkpoint, tmp_path, "--sample", "--seed", "1")[2] != executions


def test_sampling_what_does_not_sample_is_refused(tmp_path):
    for words in (
        ("measure", "--sample"),
        ("train", "--sample", "--run-dir", tmp_path / "run"),
        ("train", "--dry-run", *sets("measure.sample=true")),
        ("rank-blocks", "--sample", "--run-dir", tmp_path / "run"),
        ("demo", "--run-dir", tmp_path / "run", *sets("measure.sample=true")),
    ):
        said = typed(*words)
        assert said.status == CONFIG, words
        assert "does not sample (do_sample is not true); leave --sample" in refusal(said)
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed_as_it_was_begun():
    for verb in ("train", "rank-blocks"):
        said = typed(verb, "--resume", "runs/any", "--sample")
        assert said.status == CONFIG
        assert "give no other option with it" in refusal(said)


@pytest.mark.parametrize(("flags", "decoding"), [((), "greedy"), (("--sample",), SAMPLED)])
def test_train_and_validate(checkpoint, data, tmp_path, flags, decoding):
    folder = tmp_path / "run"
    own = sets(*TINY, f"model.path={checkpoint}", f"data.path={data}")
    said = typed("train", "--run-dir", folder, *flags, *own)
    assert said.status == 0, said.err
    assert said_once(said) == (not flags)
    store = RunStore.open(folder)
    assert store.metadata["conditions"]["decoding"] == decoding
    if not flags:
        return
    assert all(len(set(trial.draws)) == len(trial.draws) for trial in store.trials("train"))
    judged = typed("validate", folder)
    assert judged.status == 0, judged.err
    assert NOTE not in " ".join(judged.out.split())
    assert store.read_json("validation.json")["conditions"]["decoding"] == decoding


def test_rank_blocks_samples(checkpoint, data, tmp_path):
    folder = tmp_path / "ranked"
    words = ("rank-blocks", checkpoint, "--data", data, "--samples", "2", "--keep", "6", "--run-dir", folder)
    said = typed(*words, "--sample")
    assert said.status == 0, said.err
    assert json.loads((folder / "ranking.json").read_text())["conditions"]["decoding"] == SAMPLED
    for trial in RunStore.open(folder).trials("rank"):
        assert len({execution.setting for execution in trial.executions}) == len(trial.executions)


def test_knobs_and_doctor_are_greedy(checkpoint, tmp_path):
    image = tmp_path / "a.png"
    load = load_vlm(checkpoint)
    assert load.model.generation_config.do_sample
    from PIL import Image

    Image.new("RGB", (64, 64)).save(image)
    few = sets("knobs.vision_tokens=[272]", "knobs.moe_topk=[4]", "knobs.block_skip=[[3, 4]]")
    file = tmp_path / "found.json"
    said = typed("knobs", checkpoint, "--image", image, "--prompt", "What?", "--repeats", "2", "--json", file, *few)
    assert said.status == 0, said.err
    assert said_once(said)
    assert json.loads(file.read_text())["conditions"]["decoding"] == "greedy"
    said = typed("doctor", "--model", checkpoint, "--seconds", "0.5", "--json", file)
    assert said.status in {0, 10, 11}
    assert said_once(said)
    assert json.loads(file.read_text())["conditions"]["decoding"] == "greedy"
    assert typed("doctor", "--sample").status == typed("knobs", "--sample").status == CONFIG
