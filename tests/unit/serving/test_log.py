"""The log of requests: nothing is lost or doubled, wherever its server is killed."""

import errno
import io
import shutil
from pathlib import Path

import pytest

import chronostat.serving.log
from chronostat.errors import StoreError
from chronostat.records.messages import Turn
from chronostat.runs.store.parts import live_parts
from chronostat.serving.log import FOLDER, RequestLog, read_requests
from chronostat.serving.served import REQUESTS, Served
from chronostat.wire.asks import Ask, AskedBudget, Sampling
from chronostat.wire.errors import Refused
from stand_ins.serving import answered_with


@pytest.fixture
def log_in():
    """Makes logs; those that a test leaves as a killed server does are closed without merging."""
    logs = []

    def make(run):
        logs.append(RequestLog(run))
        return logs[-1]

    yield make
    for log in logs:
        log._file.close()


def served(name, *, messages=None):
    budget = AskedBudget(ms=60.0, kind="deadline", strict=True)
    ask = Ask(
        id=name,
        received_ns=0,
        turns=(Turn(role="user", parts=("Hi",)),),
        sampling=Sampling(temperature=0.5, top_p=0.9),
        budget=budget,
        messages=messages,
    )
    return Served(id=name, received="2026-12-01T10:00:00.000+00:00", ask=ask, outcome=answered_with("Yes", ask))


def ids(run):
    return read_requests(run).column("id").to_pylist()


def test_what_is_appended_is_read_at_once_with_all_its_columns(tmp_path, log_in):
    log = log_in(tmp_path)
    log.append(served("a"))
    (row,) = read_requests(tmp_path).to_pylist()
    assert list(row) == REQUESTS.names
    shown = {"record": 0, "status": 200, "budget_ms": 60.0, "budget_kind": "deadline", "budget_policy": "strict"}
    shown |= {"kept": True, "charged_ms": 50.5, "queue_ms": 2.0, "vision_ms": 12.0, "setting": "vision_tokens=80"}
    shown |= {"knobs": '{"vision_tokens": 80}', "temperature": 0.5, "top_p": 0.9, "new_tokens": 2, "image_tokens": 3}
    shown |= {"code": None, "messages": None, "answer": None, "metric": "request_ms", "finish": "stop"}
    assert {name: row[name] for name in shown} == shown


def test_messages_and_answers_are_kept_only_where_they_are_asked_for(tmp_path, log_in):
    log_in(tmp_path).append(served("a", messages='[{"role": "user"}]'))
    (row,) = read_requests(tmp_path).to_pylist()
    assert (row["messages"], row["answer"]) == ('[{"role": "user"}]', "Yes")


def test_refusals_and_requests_whose_clients_went_away_are_in_it(tmp_path, log_in):
    log = log_in(tmp_path)
    refused = Refused(400, "no", code="invalid_json")
    log.append(Served(id="a", received="", ask=None, outcome=refused))
    log.append(Served(id="b", received="", ask=None, outcome=None, gone=True))
    table = read_requests(tmp_path)
    assert table.column("status").to_pylist() == [400, 499]
    assert table.column("code").to_pylist() == ["invalid_json", None]


def test_merging_moves_lines_to_one_part_and_goes_on(tmp_path, log_in):
    log = log_in(tmp_path)
    for name in "abc":
        log.append(served(name))
    log.merge()
    assert (log.pending, ids(tmp_path)) == (0, ["a", "b", "c"])
    log.append(served("d"))
    assert ids(tmp_path) == ["a", "b", "c", "d"]
    log.close()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["00000000-00000003.parquet"]
    assert ids(tmp_path) == ["a", "b", "c", "d"]


def test_what_a_killed_server_left_is_read_and_merged_by_the_next_one(tmp_path, log_in):
    killed = log_in(tmp_path)
    killed.append(served("a"))
    (segment,) = (tmp_path / FOLDER).glob("log-*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"record": 1, "id": "cut sh')  # nobody got an answer to it
    assert ids(tmp_path) == ["a"]
    log = log_in(tmp_path)
    log.append(served("b"))
    assert ids(tmp_path) == ["a", "b"]


def test_a_server_that_is_killed_between_merging_and_removing_doubles_nothing(tmp_path, log_in):
    log = log_in(tmp_path)
    log.append(served("a"))
    (segment,) = (tmp_path / FOLDER).glob("log-*.jsonl")
    kept = tmp_path / "kept"
    shutil.copy(segment, kept)
    log.merge()
    next(iter((tmp_path / FOLDER).glob("log-*.jsonl"))).unlink()
    shutil.copy(kept, segment)  # as it was before it was removed
    assert ids(tmp_path) == ["a"]
    log_in(tmp_path)
    assert ids(tmp_path) == ["a"]
    assert not segment.exists()


def test_many_merges_leave_a_part_each_until_the_end(tmp_path, log_in):
    log = log_in(tmp_path)
    for name in "ab":
        log.append(served(name))
        log.merge()
    assert len(live_parts(tmp_path / FOLDER)) == 2
    log.close()
    assert len(live_parts(tmp_path / FOLDER)) == 1


def test_where_nothing_was_served_there_is_an_empty_table(tmp_path):
    assert read_requests(tmp_path).num_rows == 0


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    (tmp_path / FOLDER).write_text("")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        RequestLog(tmp_path)


def test_where_merging_fails_more_can_be_appended_and_nothing_is_lost(tmp_path, log_in, monkeypatch):
    def full(*_):
        raise StoreError("no space left on device")

    log = log_in(tmp_path)
    log.append(served("a"))
    with monkeypatch.context() as patched:
        patched.setattr(chronostat.serving.log, "write_part", full)
        with pytest.raises(StoreError, match="no space left"):
            log.merge()
        log.append(served("b"))
    assert ids(tmp_path) == ["a", "b"]
    log.merge()
    assert ids(tmp_path) == ["a", "b"]


def test_a_full_disk_is_said_in_words(tmp_path, log_in):
    log = log_in(tmp_path)
    log._file.close()
    log._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 - closed by the log
    with pytest.raises(StoreError, match="No space left on device"):
        log.append(served("a"))


def test_a_line_that_a_full_disk_has_cut_is_neither_read_nor_continued(tmp_path, log_in):
    class Filling(io.FileIO):
        """Takes half of a line, and then nothing until there is space again."""

        space = 100

        def write(self, data):
            if not self.space:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = super().write(data[: self.space])
            self.space -= taken
            return taken

    log = log_in(tmp_path)
    log.append(served("a"))
    log._file.close()
    log._file = Filling(log._path, "ab")
    for left in (100, 0):  # half a line; then nothing, in its place
        with pytest.raises(StoreError, match="No space left on device"):
            log.append(served("b"))
        assert len(log._path.read_bytes().rpartition(b"\n")[2]) == left
        assert ids(tmp_path) == ["a"]
    log._file.space = 10**6
    log.append(served("c"))
    assert ids(tmp_path) == ["a", "c"]
    log.close()
    assert ids(tmp_path) == ["a", "c"]
