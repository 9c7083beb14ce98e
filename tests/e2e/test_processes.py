"""Whole runs in processes of their own: the main job, ctrl-C, kill -9, a disk that is full."""

import importlib
import json
import os
import re
import resource
import shutil
import signal
from time import sleep

import pytest

from chronostat.errors import StoreError
from chronostat.runs.store import RunStore
from e2e.commands import FEW_SETTINGS, TINY, ended, executions, refusal, run, sets, started, typed

pytestmark = pytest.mark.slow

LONG = (*TINY, "train.select_executions=40", "train.executions=80")


def when_stored(process, folder, phase, trials):
    """Wait until a running process has stored so many trials of a phase; they are what it returns."""
    while process.poll() is None:
        try:
            stored = RunStore.open(folder).trials(phase)
        except StoreError:  # not begun yet
            stored = []
        if len(stored) >= trials:
            return stored
        sleep(0.05)
    return pytest.fail(f"ended before it had stored {trials} trials: {ended(process)}")


def executed(said, phase):
    """How many executions a process says it made in a phase."""
    match = re.search(rf"^{phase}: .*?([\d,]+) executions in", said.out, re.MULTILINE)
    assert match is not None, said.out
    return int(match[1].replace(",", ""))


def failed_or_unscored(store):
    return sum(e.timing is None or e.quality is None for trial in store.trials() for e in trial.executions)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was ended by ctrl-C in its selection, and what it said."""
    cwd = tmp_path_factory.mktemp("interrupted")
    process = started("train", "--run-dir", "run", *sets(*LONG), cwd=cwd)
    when_stored(process, cwd / "run", "select", 2)
    process.send_signal(signal.SIGINT)
    return cwd, ended(process), RunStore.open(cwd / "run").trials("select")


def test_ctrl_c_says_one_thing_and_keeps_what_was_measured(interrupted):
    cwd, said, stored = interrupted
    assert said.status == 130
    assert refusal(said) == "interrupted; what was measured is in run, continue with: chronostat train --resume run"
    assert 2 <= len(stored) < 10  # of four settings each, 40 executions
    assert [trial.index for trial in stored] == list(range(len(stored)))
    store = RunStore.open(cwd / "run")
    phase = store.metadata["phases"]["select"]
    assert phase["generate_calls"] == executions(store, "select")
    assert executed(said, "find the best fixed settings") == phase["generate_calls"] + phase.get("unfinished_calls", 0)
    assert not store.holds("controller/controller.json")


@pytest.fixture(scope="module")
def killed(interrupted):
    """The same run, gone on with and killed by kill -9."""
    cwd, _, _ = interrupted
    process = started("train", "--resume", "run", cwd=cwd)
    when_stored(process, cwd / "run", "train", 3)
    process.kill()
    said = ended(process)
    return cwd, said, RunStore.open(cwd / "run").trials("train")


def test_kill_9_loses_no_stored_trial(interrupted, killed):
    cwd, said, stored = killed
    _, _, before = interrupted
    assert said.status == -signal.SIGKILL
    store = RunStore.open(cwd / "run")
    assert store.trials("select")[: len(before)] == before
    assert sum(trial.asked for trial in store.trials("select")) == 40
    assert store.metadata["phases"]["select"]["generate_calls"] == executions(store, "select")  # of both processes
    assert [trial.index for trial in stored] == list(range(len(stored)))
    assert sum(trial.asked for trial in stored) < 80
    # nobody could count the calls of a process that was killed
    assert "generate_calls" not in store.metadata["phases"].get("train", {})


@pytest.fixture(scope="module")
def finished(killed):
    cwd, _, _ = killed
    return cwd, typed("train", "--resume", cwd / "run")


def test_a_resumed_run_ends_after_the_same_executions_and_makes_none_twice(killed, finished):
    cwd, said = finished
    _, _, before = killed
    assert said.status == 0, said.err
    store = RunStore.open(cwd / "run")
    trials = store.trials("train")
    assert [trial.index for trial in trials] == list(range(len(trials)))
    assert 80 <= sum(trial.asked for trial in trials) < 80 + 4
    assert trials[: len(before)] == before
    # those that were stored are learned from without being executed again
    assert executed(said, "train") == sum(len(trial.executions) for trial in trials[len(before) :])
    assert [step.index for step in store.steps()] == list(range(len(trials)))
    assert "generate_calls" not in store.metadata["phases"]["train"]
    metadata = json.loads((cwd / "run" / "controller" / "controller.json").read_text())
    learned = executions(store, "calibrate", "select", "train")
    assert metadata["controller"]["executions"] == learned - failed_or_unscored(store)


def test_budgets_and_samples_do_not_change_when_a_run_goes_on(finished):
    """The whole draw of a step follows from the seed and its number, whoever makes it."""
    cwd, _ = finished
    store = RunStore.open(cwd / "run")
    low, high = store.metadata["budget_range"]
    budgets = {trial.budget for trial in store.trials("train")}
    assert all(low - 1e-9 <= budget.fraction <= high + 1e-9 for budget in budgets)
    assert len({trial.sample_id for trial in store.trials("train")}) == len(store.trials("train"))


def test_a_resumed_run_can_be_judged_and_shown(finished):
    cwd, _ = finished
    said = typed("validate", cwd / "run")
    assert said.status == 0, said.err
    assert "4 paired test samples" in said.out
    store = RunStore.open(cwd / "run")
    phases = store.metadata["phases"]
    assert phases["test"]["generate_calls"] == executions(store, "test")
    page = (cwd / "run" / "report.html").read_text()
    assert "Where generate() calls were counted, they equal the stored executions." in page


def test_two_processes_do_not_write_one_run(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    (folder / "controller" / "controller.json").unlink()  # as if it had not ended yet
    with RunStore.open(folder) as store:
        store.update_metadata(writer="this process")
        message = refusal(run("train", "--resume", "run", cwd=tmp_path))
    assert message.startswith(f"another process (id {os.getpid()}) is writing to the run run; wait until it ends")


def test_the_main_job(tmp_path):
    earlier = tmp_path / "runs" / "demo-20200101-000000"
    earlier.mkdir(parents=True)
    (earlier / "run.json").write_text("an earlier run that nobody can read")
    said = run(
        "demo",
        *sets(
            *FEW_SETTINGS,
            "train.calibration_executions=16",
            "train.select_executions=16",
            "train.executions=16",
            "validation.samples=4",
            "validation.mean_budgets=[0.6, 0.8]",
            "validation.deadlines=[0.9]",
        ),
        cwd=tmp_path,
    )
    assert said.status == 0, said.err
    assert said.err == ""
    assert (earlier / "run.json").read_text() == "an earlier run that nobody can read"
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path != earlier)
    first = said.out.splitlines()[0]
    assert re.fullmatch(
        rf"Chronostat runs its main job in {folder.relative_to(tmp_path)}: about \d+ minutes? here, for 64 executions "
        r"of \d+ ms, as the warm-up measured; it judges on all 4 test samples\.",  # 16 each, 4 samples under 4 settings
        first,
    )
    assert f"report: {folder.relative_to(tmp_path) / 'report.html'}" in said.out
    assert (folder / "report.html").is_file()
    assert (folder / "report.svg").is_file()
    store = RunStore.open(folder)
    phases = store.metadata["phases"]
    assert list(phases) == ["warmup", "calibrate", "select", "train", "test"]
    for phase, metadata in phases.items():
        assert metadata["generate_calls"] == executions(store, phase) > 0
        assert "unfinished_calls" not in metadata
    assert sum(executions(store, phase) for phase in phases) == executions(store, *phases)
    assert "4 paired test samples" in said.out
    assert "In every phase the stored executions equal the generate() calls" in (folder / "report.html").read_text()
    # compacted: one part for each table
    assert {len(list((folder / table).glob("*.parquet"))) for table in ("executions", "decisions", "steps")} == {1}


def small_files_only():
    """Let every write beyond 100 kB fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_is_full(tmp_path):
    said = run("train", "--run-dir", "run", *sets(*TINY), cwd=tmp_path, before=small_files_only)
    assert said.status == 8
    message = refusal(said)
    assert re.match(r"cannot write run/controller/policy-\w+\.safetensors: ", message)
    assert "free some space or choose another run directory" in message
    store = RunStore.open(tmp_path / "run")
    for phase in ("calibrate", "select", "train"):
        assert executions(store, phase) == store.metadata["phases"][phase]["generate_calls"] > 0
    before = store.trials("train")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]
    # with space it goes on
    assert typed("train", "--resume", tmp_path / "run").status == 0
    assert store.trials("train") == before  # nothing was left to execute
    assert store.holds("controller/controller.json")


def press_at(monkeypatch, module, call):
    """Ctrl-C at the n-th execution that a module makes, as the terminal sends it to this process."""
    module = importlib.import_module(module)
    execute, calls = module.execute, []

    def pressed(*given, **options):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return execute(*given, **options)

    monkeypatch.setattr(module, "execute", pressed)


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (("measure", "--repeats", "2000"), "chronostat.studies.survey.arms"),
        (("doctor", "--device", "cpu", "--seconds", "1000000"), "chronostat.studies.doctor"),
    ],
)
def test_ctrl_c_shows_and_writes_what_was_measured_until_then(tmp_path, monkeypatch, words, module):
    press_at(monkeypatch, module, 8)
    said = typed(*words, "--json", tmp_path / "found.json")
    assert said.status == 130
    assert said.err.splitlines() == [
        "chronostat: ends after what is being executed; Ctrl-C again ends at once, without result",
        "chronostat: interrupted",
    ]
    assert "found.json" in said.out
    found = json.loads((tmp_path / "found.json").read_text())
    if words[0] == "measure":
        assert found["interrupted"] is True
        assert len(found["arms"][0]["executions"]) == 6  # one more is followed, and one warms up
        assert "interrupted: this is what was measured until then" in said.out
    else:
        assert found["repeats"] == 6  # and three to warm up: the pair of the eighth is finished
