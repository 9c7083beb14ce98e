"""The store: records come back exactly, whatever dies meanwhile."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chronostat.runs.store.run as run_module
from chronostat.errors import StoreError
from chronostat.records import (
    Budget,
    Conditions,
    Decision,
    Estimate,
    Execution,
    PolicyScore,
    Setting,
    StageTiming,
    Step,
    Trial,
)
from chronostat.runs.store import Counted, FixedScore, KindScore, KindsDiffer, RunStore, Selected, Validation
from chronostat.runs.store.lock import WriterLock
from stand_ins.sample_run import a_decision, a_step, a_trial, metadata

DOCS = Path(__file__).parents[3] / "docs" / "records.md"

reals = st.floats(allow_nan=False)
wholes = st.integers(0, 2**40)
names = st.from_regex(r"[a-z][a-z_]{0,9}", fullmatch=True)
knob_values = st.integers(-5, 4096) | st.lists(st.integers(0, 99), max_size=4).map(tuple)
knob_settings = st.dictionaries(names, knob_values, max_size=3).map(Setting)
budgets = st.builds(Budget, kind=st.sampled_from(["mean", "deadline"]), fraction=st.floats(0.01, 2))
maybe = st.none() | reals
stages = ("ttft", "prefill", "vision", "projector", "llm_prefill", "prefill_rest", "decode", "other")
timings = st.builds(
    StageTiming,
    source=st.sampled_from(["measured", "total_only", "estimated"]),
    total_ms=reals,
    new_tokens=wholes,
    decode_steps=wholes,
    decode_ms_per_token=maybe,
    unseen=st.none() | st.text(),
    **{f"{stage}_ms": maybe for stage in stages},
)


def executions(sample_id: str) -> st.SearchStrategy[Execution]:
    metadata = {
        "sample_id": st.just(sample_id),
        "split": names,
        "setting": knob_settings,
        "kind": st.none() | names,
        "output_ids": st.lists(wholes, max_size=5).map(tuple),
        "answer": st.none() | st.text(),
        "quality": st.none() | st.floats(0, 1),
        "preprocess_ms": maybe,
        "controller_ms": st.floats(0, 9),
        "prompt_tokens": st.none() | wholes,
        "image_tokens": st.none() | wholes,
    }
    worked = st.builds(Execution, timing=timings, **metadata)
    return worked | st.builds(Execution, timing=st.none(), invalid=st.text(), **metadata)


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    sample_id = draw(st.text())
    ran = tuple(draw(st.lists(executions(sample_id), min_size=1, max_size=4)))
    position = st.integers(0, len(ran) - 1)
    return Trial(
        phase=draw(st.sampled_from(["warmup", "calibrate", "train", "select", "test"])),
        index=draw(wholes),
        sample_id=sample_id,
        executions=ran,
        draws=tuple(draw(st.lists(position, max_size=5))),
        probabilities=tuple(draw(st.lists(st.floats(0, 1), max_size=5))),
        policy_version=draw(st.none() | wholes),
        anchor=draw(st.none() | position),
        budget=draw(st.none() | budgets),
        started_s=draw(reals),
    )


decisions = st.builds(
    Decision,
    sample_id=st.text(),
    split=names,
    kind=st.none() | names,
    budget=budgets,
    setting=knob_settings,
    controller_ms=reals,
)
steps = st.builds(
    Step,
    index=wholes,
    executed_ms=reals,
    quality=reals,
    latency_fraction=reals,
    budget=budgets,
    metrics=st.dictionaries(names, reals, max_size=4),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run", {"seed": 0}) as store:
        yield store


# --- Records come back ---


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(trials() | decisions | steps, max_size=3), max_size=4), st.booleans())
def test_records_come_back_exactly(appends: list[list[Trial | Decision | Step]], compact: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, RunStore.create(folder, {}) as store:
        for records in appends:
            store.append(records)
        if compact:
            store.compact()
        flat = [record for records in appends for record in records]
        again = RunStore.open(folder)
        assert again.trials() == [record for record in flat if isinstance(record, Trial)]
        assert again.decisions() == [record for record in flat if isinstance(record, Decision)]
        assert again.steps() == [record for record in flat if isinstance(record, Step)]


def test_a_quality_that_is_no_number_stays_so(store: RunStore) -> None:
    budget = Budget(kind="mean", fraction=1.0)
    nan = float("nan")
    store.append(
        Step(index=0, executed_ms=1.0, quality=nan, latency_fraction=nan, budget=budget, metrics={"loss": nan})
    )
    (step,) = store.steps()
    assert step.quality != step.quality
    assert step.metrics["loss"] != step.metrics["loss"]


def test_trials_of_one_phase(store: RunStore) -> None:
    store.append([a_trial(0), a_trial(0, phase="test"), a_trial(1)])
    assert [trial.index for trial in store.trials("train")] == [0, 1]
    assert len(store.trials("test")) == 1
    assert store.trials("select") == []


def test_two_trials_of_the_same_number_stay_two(store: RunStore) -> None:
    store.append([a_trial(7), a_trial(7)])
    assert store.trials() == [a_trial(7), a_trial(7)]


@pytest.mark.parametrize("changes", [{"executions": ()}, {"sample_id": "another"}])
def test_a_trial_that_would_not_come_back_is_refused(store: RunStore, changes: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="at least one execution, and all of them on its sample"):
        store.append(a_trial(**changes))
    assert store.trials() == []


def test_one_part_per_append(store: RunStore) -> None:
    store.append(a_trial())
    store.append([a_trial(1), a_trial(2)])
    parts = sorted(path.name for path in (store.folder / "executions").iterdir())
    assert parts == ["00000000-00000000.parquet", "00000001-00000002.parquet"]


def test_chances_that_an_older_version_did_not_write_read_as_null(store: RunStore) -> None:
    trial = a_trial(probabilities=(0.5, 0.25, 0.5), policy_version=3)
    store.append([trial, a_trial(1)])
    (part,) = (store.folder / "executions").iterdir()
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["draw_probabilities", "policy_version"]), part, store_schema=False)
    old = RunStore.open(store.folder)
    assert old.trials() == [replace(trial, probabilities=(), policy_version=None), a_trial(1)]
    assert old.query("SELECT DISTINCT draw_probabilities, policy_version FROM executions").fetchall() == [(None, None)]
    # and what is stored today stands beside it
    store.append(replace(trial, index=2))
    store.compact()
    rows = RunStore.open(store.folder).query("SELECT policy_version FROM trials ORDER BY record").fetchall()
    assert rows == [(None,), (None,), (3,)]
    assert RunStore.open(store.folder).trials()[2].probabilities == (0.5, 0.25, 0.5)


# --- DuckDB ---


def test_executions_are_flat_rows(store: RunStore) -> None:
    store.append(a_trial(5, budget=Budget(kind="mean", fraction=0.4)))
    sql = "SELECT trial_index, position, draw_count, is_anchor, setting, knobs->>'vision_tokens' FROM executions"
    assert store.query(sql).fetchall() == [
        (5, 0, 2, True, "vision_tokens=80", "80"),
        (5, 1, 1, False, "vision_tokens=16 block_skip=2,3", "16"),
        (5, 2, 0, False, "vision_tokens=8", "8"),
    ]
    # preprocess 2 + controller 0.5 + total 30
    assert store.query("SELECT request_ms, budget_fraction FROM executions LIMIT 1").fetchall() == [(32.5, 0.4)]
    assert store.query("SELECT invalid, total_ms, source FROM executions WHERE invalid IS NOT NULL").fetchall() == [
        ("RuntimeError: out of memory", None, None)
    ]


def test_trials_decisions_and_steps_are_views(store: RunStore) -> None:
    store.append([a_trial(), a_step(), a_decision()])
    sql = "SELECT draws, executions, invalid_executions, has_anchor, executed_ms FROM trials"
    assert store.query(sql).fetchall() == [(3, 3, 1, True, 60.0)]
    assert store.query("SELECT metrics['loss'] FROM steps").fetchall() == [(0.1,)]
    assert store.query("SELECT setting FROM decisions").fetchall() == [("vision_tokens=16",)]


def test_an_empty_run_has_typed_tables(store: RunStore) -> None:
    assert store.query("SELECT avg(prefill_ms), count(*) FROM executions").fetchall() == [(None, 0)]
    assert store.query("SELECT * FROM trials").fetchall() == []


def test_a_reader_sees_what_was_appended_since(store: RunStore) -> None:
    reader = RunStore.open(store.folder)
    assert reader.steps() == []
    store.append(a_step())
    assert len(reader.steps()) == 1
    store.compact()
    assert len(reader.steps()) == 1


# --- Facts ---


def test_facts(store: RunStore) -> None:
    store.update_metadata(metric="prefill_ms", phases={"train": {"seconds": 1.5}})
    assert RunStore.open(store.folder).metadata == {
        "seed": 0,
        "metric": "prefill_ms",
        "phases": {"train": {"seconds": 1.5}},
    }
    assert not store.holds("validation.json")
    with pytest.raises(StoreError, match=r"validation\.json does not exist; this run has not got that far"):
        store.read_json("validation.json")


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"model": "x"}, "model: "),
        ({"model": {"parameters": []}}, "model.parameters: "),
        ({"space": 5}, "space: "),
        ({"space": {"moe_topk": []}}, "space.moe_topk: "),
        ({"config": {"train": "x"}}, "config.train: "),
        ({"full_ms": {"calibrate": "fast"}}, "full_ms.calibrate: "),
        ({"budget_range": [0.2]}, "budget_range.1: "),
    ],
)
def test_facts_of_the_wrong_kind_are_named(store: RunStore, metadata: dict[str, object], key: str) -> None:
    store.update_metadata(**metadata)
    with pytest.raises(StoreError, match=rf"cannot read .*run\.json: {re.escape(key)}.*; put back a whole copy"):
        _ = store.metadata


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_damaged_facts_are_named(store: RunStore, content: str) -> None:
    (store.folder / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"cannot read .*run\.json"):
        _ = store.metadata


def test_validation_comes_back() -> None:
    estimate = Estimate(point=0.5, low=0.4, high=0.6)
    score = PolicyScore(
        policy="controller",
        budget=Budget(kind="mean", fraction=0.4),
        budget_ms=12.0,
        samples=300,
        settings=(("vision_tokens=16", 0.7), ("full", 0.3)),
        accuracy=estimate,
        mean_ms=estimate,
        p50_ms=10.0,
        p95_ms=20.0,
        share_within=estimate,
        gain=None,
        kept=True,
    )
    validation = Validation(
        scores=(score,),
        samples=300,
        fixed=(FixedScore(setting="full", n=300, accuracy=estimate, mean_ms=estimate, p95_ms=3.0),),
        by_kind=(
            KindScore(
                kind="sum", budget="mean 0.40", policy="controller", n=9, accuracy=1.0, setting_shares={"full": 1}
            ),
        ),
        selection={"mean 0.40": Selected(setting="full", n=200, validation_accuracy=0.5)},
        kinds_differ=KindsDiffer(budget="mean 0.40", p_value=0.001, most_chosen={"sum": "full"}),
        counted=Counted(executions=3, generate_calls=3),
    )
    data = json.loads(json.dumps(validation.to_json()))
    assert Validation.from_json(data) == validation
    del data["scores"][0]["accuracy"]["low"]
    with pytest.raises(StoreError, match=r"validation\.json: scores\.0\.accuracy\.low: Field required"):
        Validation.from_json(data)


# --- Which folders ---


def test_a_folder_that_holds_a_run_is_refused(store: RunStore) -> None:
    store.append(a_trial())
    store.close()
    with pytest.raises(StoreError, match="already holds a run; choose another"):
        RunStore.create(store.folder, {})
    assert len(store.trials()) == 1


@pytest.mark.parametrize("left", ["controller/controller.json", "validation.json", "steps"])
def test_what_is_left_of_a_run_is_neither_gone_on_with_nor_removed(tmp_path: Path, left: str) -> None:
    with RunStore.create(tmp_path / "run", {}) as store:
        if left == "steps":
            store.append(a_step())
        else:
            (store.folder / left).parent.mkdir(exist_ok=True)
            (store.folder / left).write_text("{}")
    (store.folder / "run.json").unlink()
    with pytest.raises(StoreError, match=rf"what is left of a run without run.json: {left}; choose another"):
        RunStore.create(store.folder, {})
    assert (store.folder / left).exists()


def test_a_refused_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match="already holds a run"):
        RunStore.create(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_that_began_and_ended_before_the_lock_was_taken_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_another(folder: Path) -> WriterLock:
        monkeypatch.undo()
        RunStore.create(folder, {"seed": 1}).close()
        return WriterLock(folder)

    monkeypatch.setattr(run_module, "WriterLock", after_another)
    with pytest.raises(StoreError, match="already holds a run"):
        RunStore.create(tmp_path, {"seed": 2})
    with RunStore.open(tmp_path) as store:
        assert store.metadata == {"seed": 1}
        store.append(a_trial())  # the refused one holds no lock


def test_a_run_that_was_killed_before_it_had_facts_can_begin(tmp_path: Path) -> None:
    for name in ("executions", "decisions", "steps"):
        (tmp_path / name).mkdir()
    (tmp_path / ".run.json.tmp").write_text("{")
    (tmp_path / "mine.txt").write_text("keep")
    with RunStore.create(tmp_path, {"seed": 1}) as store:
        assert store.metadata == {"seed": 1}
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no run: there is no run\.json in it"):
        RunStore.open(tmp_path)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*run: File exists; a file stands where a folder is needed"):
        RunStore.create(tmp_path / "run", {})


# --- One writer ---


def test_a_second_writer_is_refused_and_readers_are_not(store: RunStore) -> None:
    store.append(a_trial())
    second = RunStore.open(store.folder)
    with pytest.raises(StoreError, match=rf"another process \(id {os.getpid()}\) is writing to the run"):
        second.append(a_trial(1))
    assert len(second.trials()) == 1
    store.close()
    second.append(a_trial(1))
    second.close()
    store.append(a_trial(2))
    assert [trial.index for trial in store.trials()] == [0, 1, 2]


def test_a_forgotten_store_gives_the_lock_back(tmp_path: Path) -> None:
    RunStore.create(tmp_path, {})
    with RunStore.open(tmp_path) as store:
        store.append(a_trial())


# --- Documentation ---


def documented_columns(view: str) -> list[tuple[str, str]]:
    section = DOCS.read_text(encoding="utf-8").split(f"### `{view}`")[1].split("\n#")[0]
    return [(name, kind) for name, kind in re.findall(r"^\| `(\w+)` \| ([\w\[\](), ]+?) \|", section, re.MULTILINE)]


@pytest.mark.parametrize("view", ["executions", "trials", "decisions", "steps"])
def test_the_documented_columns_are_the_columns(store: RunStore, view: str) -> None:
    described = store.query(f"DESCRIBE {view}").fetchall()
    assert documented_columns(view) == [(name, kind) for name, kind, *_ in described]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.+?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def documented_run(store: RunStore) -> RunStore:
    store.append([a_trial(0), a_trial(0, phase="test"), a_step(), a_decision()])
    store.compact()
    return store


@pytest.mark.parametrize("query", code_blocks("sql"))
def test_the_documented_queries_run(documented_run: RunStore, query: str) -> None:
    assert documented_run.query(query).fetchall()


@pytest.mark.parametrize("program", code_blocks("python"))
def test_the_documented_programs_run(
    documented_run: RunStore, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(program.replace("runs/demo", str(documented_run.folder)), {})
    assert "train" in capsys.readouterr().out or "setting" in program


def test_the_documented_facts_are_the_facts() -> None:
    run, _ = map(json.loads, code_blocks("json"))
    assert list(run) == list(metadata())
    assert list(run["conditions"]) == [field.name for field in fields(Conditions)]


def test_the_documented_validation_is_read() -> None:
    _, data = map(json.loads, code_blocks("json"))
    assert Validation.from_json(data).to_json() == data
    required = {key: data[key] for key in ("scores", "samples")}
    assert Validation.from_json(required).samples == 312


def test_no_torch() -> None:
    program = "import sys, chronostat.runs.store, chronostat.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
