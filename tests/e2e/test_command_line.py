"""What the verbs say and leave, without a training that is worth the name."""

import json
import re
import shutil
import subprocess
import sys
from operator import itemgetter

import pytest
from PIL import Image

from chronostat import __version__
from chronostat.models.load import BUNDLED
from chronostat.records import StageTiming
from chronostat.runs.store import RunStore
from e2e.commands import FEW_SETTINGS, executions, refusal, run, sets, typed

VERBS = ["demo", "train", "validate", "report", "measure", "doctor"]

LIGHT = """
import sys
import chronostat
from typer.main import get_command
from typer.testing import CliRunner
from chronostat.cli.app import app

def said(*words):
    return CliRunner().invoke(app, words).exit_code

def loaded(*libraries):
    return sorted({name.partition(".")[0] for name in sys.modules} & set(libraries))

for name, verb in get_command(app).commands.items():
    for inner in [(), *((inner,) for inner in getattr(verb, "commands", ()))]:
        assert said(name, *inner, "--help") == 0
assert said("--help") == said("--version") == 0
assert loaded("torch", "transformers", "numpy", "pyarrow", "duckdb", "plotly") == []
assert "chronostat.config" not in sys.modules
assert said("train", "--set", "train.learner=ppo") == 2
assert said("train", "--seed", "-1") == 2
assert said("demo", "--set", "data.path=x") == 2
assert loaded("torch", "transformers", "duckdb", "plotly") == []
"""


def test_help_and_mistakes_load_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_as_a_module_and_as_a_command(tmp_path):
    assert run("--version", cwd=tmp_path).out.strip() == __version__
    command = shutil.which("chronostat", path=str(sys.prefix) + "/bin")
    assert command is not None
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_help_names_the_verbs_and_each_of_them_says_what_it_does():
    said = typed("--help")
    assert said.status == 0
    assert all(verb in said.out for verb in VERBS)
    assert "Start with: chronostat demo" in said.out
    options = {
        "demo": ["--run-dir", "--seed", "--set"],
        "train": ["CONFIG.toml", "--resume", "--dry-run", "--seed"],
        "validate": ["RUN", "--to"],
        "report": ["RUN"],
        "measure": ["MODEL", "--setting", "--repeats", "--json", "--html", "--images", "--task", "--attention"],
        "doctor": ["--model", "--device", "--seconds", "--json"],
    }
    for verb, words in options.items():
        said = typed(verb, "--help")
        assert said.status == 0
        assert [word for word in words if word not in said.out] == []


@pytest.mark.parametrize("verb", [*VERBS, "knobs", "rank-blocks"])
def test_help_fits_80_characters_and_nothing_is_cut(monkeypatch, verb):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    text = typed(verb, "--help").out
    assert "…" not in text
    assert "--no-" not in text  # what is off has no flag
    if "--set " in text:
        assert "such as train.seconds=60" in " ".join(text.replace("│", " ").split())


@pytest.mark.slow
def test_what_was_measured_is_written_also_if_nobody_reads_the_tables(tmp_path, monkeypatch):
    def closed(*_):
        raise SystemExit(1)

    monkeypatch.setattr("chronostat.cli.actions.measure._show", closed)
    files = tmp_path / "stages.json", tmp_path / "stages.html"
    said = typed("measure", "--repeats", "1", "--new-tokens", "1", "--json", files[0], "--html", files[1])
    assert said.status == 1
    assert all(file.stat().st_size > 1000 for file in files)


def test_measure_two_settings(tmp_path):
    json_file, html_file = tmp_path / "stages.json", tmp_path / "stages.html"
    small = "vision_tokens=16 moe_topk=1"
    said = typed(
        *("measure", "--setting", "full", "--setting", small, "--repeats", "3", "--new-tokens", "3", "--exact-tokens"),
        *("--json", json_file, "--html", html_file),
    )
    assert said.status == 0
    for words in ("prefill_ms", "latency / full", "judged by prefill_ms: ", "attention sdpa", "threads 1"):
        assert words in said.out
    data = json.loads(json_file.read_text())
    assert [arm["setting"] for arm in data["arms"]] == ["full", small]
    assert {arm["model"] for arm in data["arms"]} == {"bundled demo_vlm"}
    verdicts = {each["metric"]: each["verdict"] for each in data["comparisons"]}
    assert verdicts["prefill_ms"] in {"faster", "undecided", "invalid"}  # 3 pairs of a busy machine say little
    for arm, image_tokens in zip(data["arms"], (272, 16), strict=True):
        assert arm["source"] == "measured"
        assert {"machine", "cpu", "threads", "torch", "transformers", "dtype", "attention"} <= set(arm["conditions"])
        assert {e["image_tokens"] for e in arm["executions"]} == {image_tokens}
        for execution in filter(itemgetter("counts"), arm["executions"]):
            assert execution["prefill_ms"] > execution["llm_prefill_ms"] > 0
            assert execution["total_ms"] >= execution["prefill_ms"]
            assert len(execution["waterfall"]["tokens_ms"]) == execution["new_tokens"] == 3
            assert set(StageTiming.__dataclass_fields__) <= set(execution)
    assert html_file.read_text().count('data-lane="decoder blocks"') == 2


@pytest.mark.slow
def test_measure_two_models(tmp_path):
    other, json_file = shutil.copytree(BUNDLED, tmp_path / "copy"), tmp_path / "stages.json"
    words = ("--task", "bundled", "--requests", "2", "--new-tokens", "1", "--json", json_file)
    said = typed("measure", "bundled", other, *words)
    assert said.status == 0
    data = json.loads(json_file.read_text())
    assert [arm["name"] for arm in data["arms"]] == ["bundled demo_vlm", str(other)]
    assert len({arm["fingerprint"] for arm in data["arms"]}) == 1
    assert len(data["requests"]) == 2
    assert "answers right" in said.out


def test_measure_each_image_of_a_folder(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    json_file = tmp_path / "stages.json"
    said = typed("measure", "--images", tmp_path, "--prompt", "what?", "--new-tokens", "1", "--json", json_file)
    assert said.status == 0
    assert json.loads(json_file.read_text())["requests"] == ["a.jpg", "b.png"]


def test_measure_refuses_an_illegal_setting_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr("chronostat.studies.survey.arms.execute", lambda *_, **__: pytest.fail("executed"))
    said = typed("measure", "--setting", "full", "--setting", "moe_topk=9")
    assert said.status == 5
    assert "moe_topk = 9" in refusal(said)


def test_a_dry_run_says_how_much_and_executes_no_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = typed("train", "--dry-run", *sets(*FEW_SETTINGS, "train.executions=20", "validation.samples=7"))
    assert said.status == 0
    assert "4 settings; one execution takes about" in said.out
    cells = {words[1]: words[3] for line in said.out.splitlines() if len(words := line.split()) > 4 and "│" in line}
    # 7 test samples under each of the 4 settings
    assert (cells["calibrate"], cells["select"], cells["train"], cells["test"]) == ("72", "306", "20", "28")
    assert "CPU hours" in said.out or "GPU hours" in said.out
    assert "GB on disk" in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_trained_run(trained_run):
    store = RunStore.open(trained_run)
    assert sum(trial.asked for trial in store.trials("train")) >= 6
    assert store.metadata["command"].startswith("chronostat")
    for phase in ("warmup", "calibrate", "select", "train"):
        assert store.metadata["phases"][phase]["generate_calls"] == executions(store, phase)
    assert store.metadata["model"]["parameters"] < 5_900_000
    assert not store.holds("validation.json")


@pytest.fixture(scope="module")
def validated(trained_run, tmp_path_factory):
    folder = shutil.copytree(trained_run, tmp_path_factory.mktemp("validated") / "run")
    said = typed("validate", folder, *sets("validation.samples=5"))
    assert said.status == 0, said.err
    return folder, said


@pytest.mark.slow
def test_validation_says_its_verdict_and_what_it_rests_on(validated):
    folder, said = validated
    store = RunStore.open(folder)
    n = executions(store, "test")
    assert "5 paired test samples" in said.out
    assert all(policy in said.out for policy in ("controller", "best fixed", "static mix", "full"))
    assert f"validation: {n:,} stored executions, {n:,} generate() calls" in said.out
    assert re.search(
        r"^learned share: the controller looks at the request under [012] of 2 budgets", said.out, re.MULTILINE
    )
    assert re.search(
        r"^forecast of latency: half of \d+ executions differ by more than [\d.]+ % from", said.out, re.MULTILINE
    )
    assert f"report: {folder / 'report.html'}" in said.out
    assert "permutation test p = " in said.out
    assert len({trial.sample_id for trial in store.trials("test")}) == len(store.trials("test")) == 5
    assert store.metadata["config"]["validation"]["samples"] == 5  # as it was judged


@pytest.mark.slow
def test_both_pictures_are_there_and_stand_alone(validated):
    folder, _ = validated
    page = (folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    assert (folder / "report.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_a_second_validation_is_refused_but_goes_elsewhere(validated, tmp_path):
    folder, _ = validated
    before = (folder / "validation.json").read_bytes()
    message = refusal(typed("validate", folder))
    assert message == (
        f"{folder} has been validated: its test split is judged once; for another verdict name a new run with --to DIR"
    )
    said = typed("validate", folder, "--to", tmp_path / "again", *sets("validation.samples=3"))
    assert said.status == 0, said.err
    assert (folder / "validation.json").read_bytes() == before
    again = RunStore.open(tmp_path / "again")
    assert again.metadata["trained_in"] == str(folder)
    assert again.metadata["config"]["validation"]["samples"] == 3
    assert set(again.metadata["phases"]) == {"warmup", "test"}
    assert again.metadata["forecast"] == RunStore.open(folder).metadata["forecast"]
    assert len(again.trials("test")) == 3
    assert again.holds("controller/controller.json")
    assert (tmp_path / "again" / "report.html").is_file()
    # and to the same place not twice
    assert "already holds a run" in refusal(typed("validate", folder, "--to", tmp_path / "again"))


@pytest.mark.slow
def test_an_interrupted_validation_is_not_begun_again(trained_run, tmp_path, monkeypatch):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    with monkeypatch.context() as pressed:
        pressed.setattr("chronostat.validation.judge._Judging._is_decided", _press)
        said = typed("validate", folder)
    assert said.status == 130
    assert refusal(said) == f"interrupted; what was measured is in {folder}"
    assert executions(RunStore.open(folder), "test") > 0
    message = refusal(typed("validate", folder))
    assert message.startswith(f"the validation of {folder} was interrupted, and its samples are judged once")


def _press(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_report_can_be_made_again(validated):
    folder, _ = validated
    for name in ("report.html", "report.svg"):
        (folder / name).unlink()
    said = typed("report", folder)
    assert said.status == 0
    assert (folder / "report.html").is_file()
    assert f"picture: {folder / 'report.svg'}" in said.out


def test_a_report_of_a_run_without_a_verdict(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    assert typed("report", folder).status == 0
    assert (folder / "report.html").is_file()
    assert not (folder / "report.svg").exists()


def test_a_folder_with_brackets_is_named_as_it_is(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run [bold] 1")
    assert f"report: {folder / 'report.html'}" in typed("report", folder).out
    (folder / "run.json").unlink()
    assert refusal(typed("report", folder)).startswith(f"{folder} holds no run")


@pytest.mark.slow
def test_the_configuration_file_and_the_flags_that_override_it(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text('[train]\nlearner = "rloo"\nexecutions = 9\ncalibration_executions = 8\n')
    folder = tmp_path / "run"
    said = typed(
        "train",
        file,
        "--run-dir",
        folder,
        "--seed",
        "3",
        *sets(*FEW_SETTINGS, "train.select_executions=0", "train.executions=2"),
    )
    assert said.status == 0, said.err
    config = RunStore.open(folder).metadata["config"]
    assert (config["seed"], config["train"]["learner"], config["train"]["executions"]) == (3, "rloo", 2)
    assert f"next: chronostat validate {folder}" in said.out
