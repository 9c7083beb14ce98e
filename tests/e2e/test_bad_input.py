"""Each mistake gets one clear message and an exit status of its own; what was stored stays readable."""

import json
import shutil

import pytest
from PIL import Image

from chronostat.models.load import BUNDLED
from chronostat.runs.store import RunStore
from e2e.commands import FEW_SETTINGS, refusal, sets, typed
from stand_ins.controllers import policy_of

CONFIG, DATA, MODEL, KNOB, STORE, BUDGET = 2, 3, 4, 5, 8, 9


def refused(status, *words):
    said = typed(*words)
    assert said.status == status, said.err
    return refusal(said)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "measure.latency_metric=speed",
            "measure.latency_metric = 'speed': Input should be 'prefill_ms', 'llm_prefill",
        ),
        ("train.learner=ppo", "train.learner = 'ppo': Input should be 'rloo' or 'direct'"),
        (
            "knobs.depth=[1]",
            "unknown key 'knobs.depth'; known keys: block_order, block_skip, drop_after, image_keep",
        ),
        ("trian.seconds=3", "unknown key 'trian'; known keys: data, direct, knobs, measure"),
        ("train.seconds=0", "train.seconds = 0: Input should be greater than 0"),
        ("train.seconds", "--set 'train.seconds': write section.key=value, for example --set train.seconds=60"),
        (
            "data.quality=bleu",
            "unknown quality 'bleu'; known: exact, vqa, anls, relaxed, choice, yes_no",
        ),
        ("data.task=mine", "unknown data.task 'mine'; known: demo"),
        ("model.path=/elsewhere", "without data.path: the bundled task is made for the bundled model; name your own"),
    ],
)
def test_configuration(override, message):
    assert message in refused(CONFIG, "train", "--set", override)


def test_configuration_files(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[train\nseconds = 3")
    assert f"{bad} is not valid TOML: Expected ']'" in refused(CONFIG, "train", bad)
    missing = tmp_path / "none.toml"
    assert refused(CONFIG, "train", missing) == f"cannot read the configuration {missing}: No such file or directory"
    assert "Is a directory" in refused(CONFIG, "train", tmp_path)


@pytest.mark.parametrize("verb", ["demo", "train", "measure", "rank-blocks"])
@pytest.mark.parametrize("seed", ["-1", "x"])
def test_a_seed_that_is_none(verb, seed):
    said = typed(verb, "--seed", seed)
    assert said.status == CONFIG
    assert "seed" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("--repeats", "0"),
            ("--new-tokens", "0"),
            ("--threads", "0"),
            ("--threads", "1025"),
            ("--requests", "0"),
            ("--device", "tpu"),
        ),
        *(("--attention", "fast"), ("--task", "mine"), ("--speed", "9")),
    ],
)
def test_flags_of_measure(words):
    said = typed("measure", *words)
    assert said.status == CONFIG
    assert words[0] in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("depth=2", "unknown knob 'depth'; known knobs: vision_tokens, moe_topk, block_skip"),
        ("moe_topk=9", "moe_topk = 9 is not legal on this model; legal: "),
        (
            "vision_tokens=0",
            "vision_tokens = 0 is not legal on this model; legal: 1 to 272 tokens, of which ",
        ),
        ("vision_tokens=0.001", "vision_tokens = 0.001 is not legal on this model; legal: 1 to 272 tokens, of which "),
        ("block_skip=99,", "block_skip = (99,) is not legal on this model; legal: "),
        ("block_skip=2", "from 0 to 7, at most 7 of them, one alone as in block_skip=2,"),
        ("moe_topk=1 moe_topk=2", "'moe_topk=1 moe_topk=2' names moe_topk 2 times; name each knob once"),
        ("fast", "cannot read 'fast' as a knob setting; write knob=value, for example vision_tokens=80"),
    ],
)
def test_settings(setting, message):
    assert message in refused(KNOB, "measure", "--setting", setting)


def test_levels_of_a_knob(tmp_path):
    folder = tmp_path / "run"
    assert "moe_topk = 9" in refused(KNOB, "train", "--run-dir", folder, "--set", "knobs.moe_topk=[9]")
    assert not folder.exists()


@pytest.mark.parametrize("verb", ["measure", "knobs"])
def test_a_prompt_that_the_processor_refuses(tmp_path, verb):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    said = refused(DATA, verb, "--image", tmp_path / "a.png", "--prompt", "What is <IMG_CONTEXT>?")
    assert said.startswith(
        "the processor of bundled demo_vlm refuses request (The total number of <IMG_CONTEXT> tokens"
    )
    assert said.endswith("; change its prompt or image")


def test_a_request_is_an_image_and_a_prompt(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    message = "give --image FILE and --prompt TEXT together, or neither for a request of the bundled task"
    assert refused(CONFIG, "measure", "--image", tmp_path / "a.png") == message
    assert refused(CONFIG, "measure", "--prompt", "What?") == message
    message = (
        "an own model needs requests: give --image FILE and --prompt TEXT, or --images DIR and --prompt TEXT, or "
        "--task bundled"
    )
    assert refused(CONFIG, "measure", BUNDLED) == message
    assert refused(CONFIG, "measure", "bundled", BUNDLED, "--prompt", "What?") == message


@pytest.mark.parametrize("verb", ["doctor", "knobs", "rank-blocks"])
@pytest.mark.parametrize(("seconds", "why"), [("inf", "inf is no length of time"), ("nan", "greater than or equal to")])
def test_a_time_box_without_an_end_is_a_mistake_of_usage(verb, seconds, why):
    said = typed(verb, "--seconds", seconds)
    assert said.status == 2
    assert why in " ".join(said.err.split())


def test_a_budget_without_an_end_is_not_asked_for_in_seconds():
    said = typed("ask", "--budget-ms", "nan")
    assert said.status == 2
    words = " ".join(word for word in said.err.split() if word != "│")
    assert "nan is no length of time; give a finite number" in words


def test_a_setting_is_compared_with_others():
    message = "--setting 'moe_topk=1' is given twice; give each once (chronostat doctor compares a setting with itself)"
    assert refused(CONFIG, "measure", *("--setting", "moe_topk=1") * 2, "--setting", "full") == message


def test_requests_are_named_in_one_way(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    image = ("--image", tmp_path / "a.png")
    folder = ("--images", tmp_path)
    message = " each say what the requests are; give one of them"
    assert refused(CONFIG, "measure", *image, *folder) == f"--image and --images{message}"
    assert refused(CONFIG, "measure", *folder, "--task", "bundled") == f"--images and --task{message}"
    assert refused(CONFIG, "measure", *folder) == "--images DIR needs --prompt TEXT, which is asked of each image"
    message = "--requests 5 says how many of --images or --task; give one of them with it"
    assert refused(CONFIG, "measure", "--requests", "5") == message
    assert refused(CONFIG, "measure", "--requests", "5", *image, "--prompt", "What?") == message
    message = "--task brings its own prompts; leave --prompt out"
    assert refused(CONFIG, "measure", "--task", "bundled", "--prompt", "What?") == message


def test_a_folder_of_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    words = ("--prompt", "What?")
    message = refused(DATA, "measure", "--images", tmp_path, *words)
    assert message.startswith(f"--images {tmp_path} holds no image; read are .apng, ")
    message = refused(DATA, "measure", "--images", tmp_path / "none", *words)
    assert message == f"--images {tmp_path / 'none'} is no directory; name a folder of images, or files with --image"
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert refused(DATA, "measure", "--images", tmp_path, *words).startswith("cannot read the image ")


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("{", CONFIG, "is neither JSON nor TOML; it holds a table such as"),
        ("[1]", CONFIG, "holds a list; it must hold a table such as"),
        ('{"vision": 3}', CONFIG, "vision = 3; allowed are a module path or a list of them"),
        ('vision = ["a", 1]', CONFIG, "vision = ['a', 1]; allowed are a module path or a list of them"),
        ('{"eyes": "model.vision_tower"}', MODEL, "layout names an unknown part 'eyes'; known parts: vision, proj"),
        ('vision = "model.eyes"', MODEL, "layout: vision = 'model.eyes' is no module of InternVLForConditionalGen"),
        (None, CONFIG, "cannot be read"),
    ],
)
def test_layouts(tmp_path, text, status, message):
    file = tmp_path / "layout"
    if text is not None:
        file.write_text(text)
    assert message in refused(status, "measure", "--layout", file)
    assert message in refused(status, "doctor", "--seconds", "0.5", "--layout", file)


def test_models_that_cannot_be_asked_for():
    message = "--layout names the parts of one model; measure one, or leave it out"
    assert refused(CONFIG, "measure", "bundled", "other", "--layout", "a.toml") == message
    message = f"{BUNDLED} is a path, which has no revision 'v2'; revisions are those of hub models"
    assert refused(MODEL, "measure", BUNDLED, "--task", "bundled", "--revision", "v2") == message
    assert "FlashAttention3" in refused(MODEL, "measure", "--attention", "flash_attention_3")
    assert "each only once" in refused(CONFIG, "measure", "bundled", "bundled")


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_images(tmp_path, content):
    image = tmp_path / "a.png"
    if content is not None:
        image.write_bytes(content)
    message = refused(DATA, "measure", "--image", image, "--prompt", "What?")
    assert message.startswith(f"cannot read the image {image}: ")


def without_processor(folder):
    (folder / "processor_config.json").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def text_only(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config["text_config"], "architectures": ["Qwen3MoeForCausalLM"]}))


def without_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (without_processor, "processor"),
        (pickled, "holds only pickled weights (pytorch_model.bin); Chronostat loads safetensors only"),
        (text_only, "is a 'qwen3_moe' model, which takes no image: Chronostat needs an image-text-to-text model"),
        (without_config, "is no model directory: it holds no config.json; name a save_pretrained folder"),
        (shutil.rmtree, "is no directory; name a save_pretrained folder or a hub model"),
    ],
)
def test_models(tmp_path, broken, message):
    folder = shutil.copytree(BUNDLED, tmp_path / "model")
    broken(folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = refused(MODEL, "measure", folder, "--image", tmp_path / "a.png", "--prompt", "What?")
    assert message in words
    assert str(folder) in words


def write_data(folder, **changes):
    """Two samples for each split, one of them changed."""
    for shade, split in enumerate(("train", "validation", "test")):
        Image.new("RGB", (64, 64), (255, shade, shade)).save(folder / f"{split}.png")
    lines = [
        {"id": f"{split}{i}", "image": f"{split}.png", "prompt": "What colour?", "answers": ["red"], "split": split}
        for split in ("train", "validation", "test")
        for i in range(2)
    ]
    lines[1] |= changes
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return f"data.path={path}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": "a.mp4"}, "data.jsonl:2: video is not supported; give one or more images as 'image'"),
        ({"image": "none.png"}, "none.png does not exist"),
        ({"answers": []}, "data.jsonl:2: answers: List should have at least 1 item"),
        ({"id": "train0"}, "data.jsonl:2: id 'train0' appears twice; ids must be unique"),
        ({"split": "dev"}, "data.jsonl:2: split: Input should be 'train', 'validation' or 'test'"),
    ],
)
def test_own_data(tmp_path, changes, message):
    data = write_data(tmp_path, **changes)
    assert message in refused(DATA, "train", "--run-dir", tmp_path / "run", "--set", data)
    assert not (tmp_path / "run").exists()


def test_data_without_a_split_that_training_needs(tmp_path):
    data = write_data(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "validation" not in line))
    message = refused(DATA, "train", "--run-dir", tmp_path / "run", "--set", data)
    assert message == f'{path} has no sample with "split": "validation"; add some'
    assert not (tmp_path / "run").exists()


def test_an_image_that_turns_out_to_be_corrupt(tmp_path):
    data = write_data(tmp_path, image="b.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    run = tmp_path / "run"
    message = refused(DATA, "train", "--run-dir", run, *sets(data, *FEW_SETTINGS, "train.executions=4"))
    assert message.startswith(f"cannot read the image {tmp_path / 'b.png'}: ")
    # what was measured before is there
    assert RunStore.open(run).metadata["phases"]["warmup"]["generate_calls"] == 6


def test_run_directories_that_cannot_be_used(tmp_path, trained_run):
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    assert refused(STORE, "train", "--run-dir", occupied).startswith(f"cannot write {occupied}: ")
    assert "a file stands where a folder is needed" in refused(STORE, "train", "--run-dir", occupied / "run")
    message = f"{trained_run} already holds a run; choose another run directory, resume it, or delete it first"
    assert refused(STORE, "train", "--run-dir", trained_run) == message
    assert refused(STORE, "demo", "--run-dir", trained_run) == message


def test_runs_that_are_none(tmp_path):
    message = f"{tmp_path} holds no run: there is no run.json in it; name the directory that a run wrote"
    assert refused(STORE, "report", tmp_path) == message
    assert refused(STORE, "validate", tmp_path) == message
    assert refused(STORE, "train", "--resume", tmp_path) == message
    assert "holds no run" in refused(STORE, "report", tmp_path / "nowhere")


@pytest.mark.parametrize("metadata", ["{", "[]", "{}", '{"config": {"speed": 3}}'])
def test_runs_that_are_damaged(tmp_path, metadata):
    (tmp_path / "run.json").write_text(metadata)
    for words in (("validate", tmp_path), ("train", "--resume", tmp_path)):
        assert str(tmp_path / "run.json") in refused(STORE, *words)


def test_resume_takes_no_other_option(trained_run):
    message = "--resume continues a run with its own configuration; give no other option with it"
    assert refused(CONFIG, "train", "--resume", trained_run, "--seed", "1") == message
    assert refused(CONFIG, "train", "--resume", trained_run, "--dry-run") == message


def test_a_run_that_has_ended_is_not_resumed(trained_run):
    message = f"{trained_run} has finished training; next: chronostat validate {trained_run}"
    assert refused(STORE, "train", "--resume", trained_run) == message


def test_validation_of_a_run_without_a_controller(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    (folder / "controller" / "controller.json").unlink()
    message = f"{folder} holds no controller yet; continue it with: chronostat train --resume {folder}"
    assert refused(STORE, "validate", folder) == message


def test_validation_changes_only_how_is_judged(trained_run):
    message = "--set train.seconds=3: validate takes keys of the section validation only; the rest is the run's"
    assert refused(CONFIG, "validate", trained_run, "--set", "train.seconds=3") == message


@pytest.mark.slow
def test_a_budget_that_no_setting_can_meet(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    message = refused(BUDGET, "validate", folder, "--set", "validation.mean_budgets=[0.01]")
    assert message.startswith("no setting can meet the budget mean 0.01 of full; the cheapest needs 0.")
    assert " ms where full takes " in message
    # nothing was judged, so it can be judged under another one
    again = typed("validate", folder, "--set", "validation.samples=2")
    assert again.status == 0, again.err


@pytest.mark.slow
def test_a_damaged_controller(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    policy_of(folder / "controller").write_bytes(b"damaged")
    assert "cannot read" in refused(STORE, "validate", folder)
    assert RunStore.open(folder).trials("test") == []


def test_estimates_from_no_run_are_refused_before_anything_is_executed(tmp_path):
    estimates = ("--set", "measure.on_unmeasured=estimate", "--set", "measure.estimate_from=nowhere")
    message = "nowhere holds no run: there is no run.json in it; name the directory that a run wrote"
    assert refused(STORE, "demo", "--run-dir", tmp_path / "run", *estimates) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "status", "message"),
    [
        ("validation.samples=1", CONFIG, "validation.samples = 1: Input should be greater than or equal to 2"),
        (
            "validation.mean_budgets=[0.01]",
            BUDGET,
            "no setting can meet the budget mean 0.01 of full; the cheapest needs ",
        ),
    ],
)
def test_what_a_demo_cannot_judge_is_refused_before_it_trains(tmp_path, override, status, message):
    folder = tmp_path / "run"
    said = typed("demo", "--run-dir", folder, *sets(*FEW_SETTINGS, "train.calibration_executions=8", override))
    assert (said.status, said.out.count("train: ")) == (status, 0)
    assert message in said.err


def test_demo_is_the_bundled_model_on_its_task():
    message = "demo runs the bundled model on its own task; for yours: chronostat train CONFIG.toml"
    assert refused(CONFIG, "demo", "--set", "data.path=mine.jsonl") == message


def test_a_full_disk_while_the_json_file_is_written():
    message = refused(STORE, "measure", "--repeats", "1", "--json", "/dev/full")
    assert message == "cannot write /dev/full: No space left on device; name another file with --json"


@pytest.mark.parametrize(
    "words",
    [
        ("measure", "--html"),
        ("measure", "--json"),
        ("knobs", "--json"),
        ("doctor", "--json"),
        ("estimator", "evaluate", "run", "--json"),
    ],
)
def test_files_where_none_can_be_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, words):
    monkeypatch.setattr("chronostat.models.load.AutoConfig", None)
    monkeypatch.setattr("chronostat.runs.store.RunStore.open", None)
    (tmp_path / "file").write_text("")
    for path, why in (
        (tmp_path / "none" / "stages", "No such file or directory"),
        (tmp_path / "file" / "stages", "Not a directory"),
        (tmp_path, "Is a directory"),
    ):
        message = refused(STORE, *words, path)
        assert message == f"cannot write {path}: {why}; name another file with {words[-1]}"


def test_files_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # who runs the tests may be root, who may write everywhere
    path = tmp_path / "stages.json"
    message = refused(STORE, "measure", "--json", path)
    assert message == f"cannot write {path}: Permission denied; name another file with --json"


def test_two_outputs_in_one_file(tmp_path):
    path = tmp_path / "stages"
    assert refused(CONFIG, "measure", "--json", path, "--html", path) == (
        "--json and --html name one file; give each its own"
    )
