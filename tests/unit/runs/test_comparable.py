import re
from dataclasses import asdict, replace

import pytest

from chronostat.errors import StoreError, UnlikeConditions
from chronostat.records import Conditions
from chronostat.report.run.gather import look_at
from chronostat.runs.store import RunStore
from chronostat.runs.store.comparable import CONDITIONS as TABLE
from chronostat.runs.store.comparable import require_comparable
from stand_ins.sample_run import CONDITIONS, a_trial, metadata

MINE = Conditions(**CONDITIONS, python="3.12.3", commit="aaa", affinity="0-1")


def table(*many):
    return {TABLE: {each.fingerprint: asdict(each) for each in many}}


def test_a_fingerprint_is_the_same_in_every_process_and_another_for_every_field():
    # sha256 over all fields: a process with another seed of hashes has to get the same
    assert MINE.fingerprint == replace(MINE).fingerprint
    assert re.fullmatch("[0-9a-f]{12}", MINE.fingerprint)
    others = {replace(MINE, **{name: "other"}).fingerprint for name in asdict(MINE)}
    assert len(others | {MINE.fingerprint}) == len(asdict(MINE)) + 1


def test_conditions_survive_json():
    assert Conditions.from_json(asdict(MINE)) == MINE


def test_what_an_older_version_did_not_record_is_refused_by_name():
    old = Conditions.from_json(CONDITIONS)
    with pytest.raises(UnlikeConditions, match=r"python: not recorded != 3\.12\.3$"):
        old.require_comparable(MINE)


def test_conditions_of_a_newer_version_are_refused_by_name():
    with pytest.raises(UnlikeConditions, match="the conditions hold moon, which this version of chronostat cannot"):
        Conditions.from_json({**asdict(MINE), "moon": "full"})
    with pytest.raises(UnlikeConditions, match=r"incomplete .*machine.*; measure anew"):
        Conditions.from_json({"cpu": "a"})


def test_commit_and_affinity_are_told_and_refuse_nothing():
    other = replace(MINE, commit="bbb", affinity="1")
    MINE.require_comparable(other)
    assert MINE.differences(other) == ([], ["affinity: 0-1 != 1", "commit: aaa != bbb"])


def test_executions_of_unlike_conditions_are_refused_with_the_fields_that_differ():
    other = replace(MINE, threads=2, governor="powersave")
    require_comparable([MINE.fingerprint] * 3, table(MINE))
    with pytest.raises(UnlikeConditions, match=r"threads: 1 != 2; governor: not recorded != powersave$"):
        require_comparable([MINE.fingerprint, other.fingerprint], table(MINE, other))


def test_an_unknown_fingerprint_is_refused():
    with pytest.raises(StoreError, match=f"does not say under which conditions {MINE.fingerprint} was measured"):
        require_comparable([MINE.fingerprint], {})


def run_with(folder, *conditions):
    store = RunStore.create(folder, {**metadata(), **table(*conditions)})
    for index, each in enumerate(conditions):
        trial = a_trial(index)
        marked = tuple(replace(execution, conditions=each.fingerprint) for execution in trial.executions)
        store.append(replace(trial, executions=marked))
    return store


def test_a_run_gives_no_trials_that_cannot_be_compared(tmp_path):
    with run_with(tmp_path / "like", MINE, replace(MINE, commit="bbb")) as store:
        assert len(store.trials()) == 2
        assert store.trials()[0].executions[0].conditions == MINE.fingerprint
    with run_with(tmp_path / "unlike", MINE, replace(MINE, torch="3")) as store:
        for reading in (store.trials, lambda: look_at(store)):
            with pytest.raises(UnlikeConditions, match=r"torch: 2.14.1 != 3$"):
                reading()
        assert len(store.query("SELECT DISTINCT conditions FROM executions").fetchall()) == 2


def test_a_disturbance_is_stored_with_its_reason(tmp_path):
    trial = a_trial()
    marked = tuple(replace(execution, disturbed="stolen CPU time 10 ms") for execution in trial.executions)
    with RunStore.create(tmp_path / "run", metadata()) as store:
        store.append(replace(trial, executions=marked))
        assert store.trials() == [replace(trial, executions=marked)]
        assert ("stolen CPU time 10 ms",) in store.query("SELECT disturbed FROM executions").fetchall()
