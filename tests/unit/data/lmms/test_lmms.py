"""Tasks of lmms-eval on made-up rows in their own schema, where lmms-eval is installed."""

import importlib.util
import json
import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image

from chronostat.config import load_config
from chronostat.data.lmms.export import _answers
from chronostat.data.lmms.load import load_lmms
from chronostat.data.lmms.tasks import LMMS_TASKS
from chronostat.data.own import read_samples
from chronostat.data.quality import quality_by_name, score
from chronostat.errors import ConfigError, DataError
from chronostat.runs.workload import load_data, quality_of

installed = pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
TEN = ["cat"] * 4 + ["dog"] * 6
# of each task a row without its image, the prompt, an answer with its score, and one that is wrong
ROWS = {
    "textvqa_val": ({"question": "what is it?", "answers": TEN}, f"What is it?{SHORT}", ("Cat.", 1.0), "bird"),
    "vqav2_val": (
        {"question": "What is it?", "answers": [{"answer": each, "answer_id": n} for n, each in enumerate(TEN)]},
        f"What is it?{SHORT}",
        ("a cat", 1.0),
        "bird",
    ),
    "ok_vqa_val2014": (
        {"question": "What is it?", "answers": ["cat"] * 2 + ["dog"] * 8, "question_type": "one"},
        f"What is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}",
        ("cat", 0.6),
        "bird",
    ),
    "chartqa": (
        {"question": "How many?", "answer": "100", "type": "human_test"},
        "How many?\nAnswer the question with a single word.",
        ("104", 1.0),
        "106",
    ),
    "docvqa_val": ({"question": "Who?", "answers": ["hello", "x"]}, f"Who?{SHORT}", ("hallo", 0.8), "nobody"),
    "infovqa_val": ({"question": "Who?", "answers": ["hello"]}, f"Who?{SHORT}", ("hello", 1.0), "nobody"),
    "realworldqa": ({"question": "Which?\nA. one\nB. two", "answer": "B"}, "Which?\nA. one\nB. two", ("B.", 1.0), "A"),
    "scienceqa_img": (
        {"hint": "It is old.", "question": "Which?", "choices": ["one", "two"], "answer": 1, "topic": "physics"},
        f"Context: It is old.\nWhich?\nA. one\nB. two{LETTER}",
        ("two", 1.0),
        "A",
    ),
    "ai2d": (
        {"question": "Which?", "options": ["one", "two"], "answer": "1"},
        f"Which?\nA. one\nB. two{LETTER}",
        ("B", 1.0),
        "one",
    ),
    "pope": ({"question": "Is it?", "answer": "yes", "category": "random"}, f"Is it?{SHORT}", ("Yes.", 1.0), "No"),
    "ocrbench": (
        {"question": "Read it.", "answer": ["STOP", "stop sign"], "question_type": "Regular Text Recognition"},
        "Read it.",
        ("It says stop", 1.0),
        "go",
    ),
    "mme": (
        {"question": "Is it?", "answer": "No", "category": "count"},
        f"Is it?{SHORT}",
        ("no, it is not", 1.0),
        "Yes",
    ),
    "mmstar": (
        {"question": "Which? A: one, B: two", "answer": "A", "category": "math"},
        "Which? A: one, B: two\nAnswer with the option's letter from the given choices directly",
        ("(A)", 1.0),
        "B",
    ),
}
# made by the library that lmms-eval reads with, in a process of its own: importing either changes a process
EXPORT = """
import json, sys
import datasets
from chronostat.data.lmms.export import main
folder, rows = sys.argv[1], json.load(open(sys.argv[2]))
for name, (files, told) in rows.items():
    for row, file in zip(told, files):
        row["image"] = {"path": None, "bytes": open(file, "rb").read()}
    data = datasets.Dataset.from_list(told).cast_column("image", datasets.Image())
    data.to_parquet(f"{folder}/{name}.in.parquet")
    main(name, f"{folder}/{name}.parquet", f"{folder}/{name}.in.parquet")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each task on two rows, as our own Parquet."""
    folder = tmp_path_factory.mktemp("lmms")
    files = []
    for number in range(2):
        files.append(str(folder / f"{number}.png"))
        Image.new("RGB", (30 + number, 20), (200, number, 0)).save(files[-1])
    told = {name: (files, [{**row, "question_id": n} for n in range(2)]) for name, (row, *_) in ROWS.items()}
    (folder / "rows.json").write_text(json.dumps(told))
    command = [sys.executable, "-c", EXPORT, str(folder), str(folder / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_task_has_made_up_rows():
    assert set(ROWS) == set(LMMS_TASKS)
    assert len(ROWS) >= 12


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", LMMS_TASKS)
def test_a_task_is_exported_as_lmms_eval_asks_it(exported, name):
    _, prompt, (right, value), wrong = ROWS[name]
    read = read_samples(exported / f"{name}.parquet")
    assert [each.sample.id for each in read] == [f"{name}-0", f"{name}-1"]
    quality = quality_by_name(LMMS_TASKS[name].quality)
    for number, each in enumerate(read):
        assert each.sample.asked == prompt
        (image,) = each.sample.load_images()
        assert image.tobytes() == Image.new("RGB", (30 + number, 20), (200, number, 0)).tobytes()
        assert score(quality, right, each.sample) == pytest.approx(value)
        assert score(quality, wrong, each.sample) == 0


@installed
@pytest.mark.slow
def test_a_task_is_exported_once(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = str(exported / "pope.in.parquet")
    config = load_config(None, ["data.task=lmms:pope", f'data.files=["{file}"]'])
    assert quality_of(config) == "yes_no"
    first = load_data(config).everything
    assert sorted(sample.id for sample in first) == ["pope-0", "pope-1"]
    (made,) = (tmp_path / "chronostat" / "lmms").iterdir()
    then = made.stat().st_mtime_ns
    assert [sample.id for sample in load_data(config).everything] == [sample.id for sample in first]
    assert made.stat().st_mtime_ns == then
    with pytest.raises(DataError, match=r"lmms-eval cannot read .*pope.* as task docvqa_val \(.*KeyError"):
        load_lmms("docvqa_val", [file], 0)


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("cat", ["cat"]),
        (1, ["1"]),
        (["cat", None], ["cat"]),
        ([{"answer": "cat"}, {"answer": None}], ["cat"]),
        (None, []),
    ],
)
def test_answers_that_are_absent_are_no_texts(value, answers):
    assert _answers(value) == answers


def test_tasks_that_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown data\.task 'lmms:gqa'; known tasks of lmms-eval: textvqa_val, "):
        load_lmms("gqa", ["a.parquet"], 0)
    with pytest.raises(ConfigError, match=r"data\.task = 'lmms:pope' without data\.files: nothing is downloaded; name"):
        load_lmms("pope", [], 0)
    with pytest.raises(DataError, match=r"data\.files: .*none\.parquet does not exist"):
        load_lmms("pope", [str(tmp_path / "none.parquet")], 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.parquet").write_bytes(BytesIO().getvalue())
    with pytest.raises(ConfigError, match=r"needs lmms-eval, which is not installed: pip install 'chronostat\[lmms\]'"):
        load_lmms("pope", [str(tmp_path / "a.parquet")], 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=a.jsonl", "data.task=lmms:pope"], r"data\.path = 'a.jsonl' beside data\.task or data\.files"),
        (['data.files=["a"]'], "data.files is read with a data.task of lmms-eval only, not with 'demo'; use data.path"),
        (["data.columns.id=x"], "data.columns names columns of data.path, which is absent"),
        (["data.task=lmms:other"], "unknown data.task 'lmms:other'"),
    ],
)
def test_sources_that_do_not_go_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_data(load_config(None, overrides))
