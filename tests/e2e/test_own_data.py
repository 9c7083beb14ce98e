"""Own samples from JSON Lines: the bundled model on its own task, written out as a user's file."""

import json
import shutil

import pytest

from chronostat.data.demo import DemoTask
from chronostat.runs.store import RunStore
from e2e.commands import FEW_SETTINGS, executions, refusal, sets, typed

COUNTS = {"train": 12, "validation": 9, "test": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of 30 images with ten reference answers each, as VQA data has them."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for split, n in COUNTS.items():
        for sample in DemoTask(seed=5).split(split)[:n]:
            (image,) = sample.load_images()
            image.save(folder / f"{sample.id}.png")
            lines.append(
                {
                    "id": sample.id,
                    "image": f"{sample.id}.png",
                    "prompt": sample.prompt,
                    "answers": [sample.references[0]] * 3 + ["something else"] * 7,
                    "split": split,
                    "kind": sample.kind,
                }
            )
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


@pytest.mark.slow
def test_train_and_validate_on_own_data(data, tmp_path):
    config = tmp_path / "own.toml"
    config.write_text(f'[data]\npath = "{data}"\nquality = "vqa"\n[train]\nexecutions = 30\n')
    folder = tmp_path / "run"
    few = ("train.calibration_executions=8", "train.select_executions=16")
    said = typed("train", config, "--run-dir", folder, *sets(*FEW_SETTINGS, *few))
    assert said.status == 0, said.err
    store = RunStore.open(folder)
    trials = store.trials("train")
    # all of the 12 samples, then again from the first one
    samples = [trial.sample_id for trial in trials]
    assert len(set(samples[:12])) == min(len(samples), 12)
    assert samples[12:] == samples[: len(samples) - 12]
    assert {sample.split("-")[1] for sample in samples} == {"train"}
    # three of ten references agree: 7 of 10 times 3 / 3, 3 of 10 times 2 / 3
    qualities = {round(e.quality, 6) for trial in trials for e in trial.executions}
    assert qualities == {0.0, 0.9}

    text = data.read_text()
    swapped = text.replace('"train"', '"x"').replace('"test"', '"train"').replace('"x"', '"test"')
    data.write_text(swapped)
    said = typed("validate", folder)
    message = f"the samples of train and test are not those that the run in {folder} began with"
    assert refusal(said).startswith(message)
    assert said.status == 3
    data.write_text(text)
    moved = shutil.move(data, data.with_name("moved.jsonl"))
    said = typed("validate", folder)
    assert refusal(said) == f"the data of the run in {folder} is not in {data}; name where it is now with --data FILE"

    budgets = sets("validation.mean_budgets=[0.7]", "validation.deadlines=[0.9]")
    said = typed("validate", folder, "--data", moved, *budgets)
    shutil.move(moved, data)
    assert said.status == 0, said.err
    assert "9 paired test samples" in said.out
    verdict = store.read_json("validation.json")
    assert verdict["counted"]["executions"] == executions(store, "test")
    assert {trial.sample_id for trial in store.trials("select")} <= {f"demo-validation-{i:06d}" for i in range(9)}
    assert {score["accuracy"]["point"] <= 0.9 for score in verdict["scores"]} == {True}


@pytest.mark.slow
def test_full_that_answers_nothing_right_is_said_before_training(data, tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    told = [line | {"image": str(data.parent / line["image"]), "answers": ["nothing of the kind"]} for line in lines]
    wrong.write_text("\n".join(map(json.dumps, told)))
    counts = ("train.calibration_executions=32", "train.select_executions=0", "train.executions=2")  # full 8 times
    said = typed("train", "--run-dir", tmp_path / "run", *sets(f"data.path={wrong}", *counts, *FEW_SETTINGS))
    assert said.status == 0, said.err
    (place,) = [n for n, line in enumerate(said.out.splitlines()) if "warning: full answered 0 % of " in line]
    assert any(line.startswith("train: about") for line in said.out.splitlines()[place:])  # said before
