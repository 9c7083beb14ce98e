"""What the benchmark of serving makes of answers, counted by hand; and what becomes of the file where a part fails."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from benchmarks.kit import results
from benchmarks.serving import __main__ as command
from benchmarks.serving.asking import Question, Told
from benchmarks.serving.deadlines import Arm, rows
from benchmarks.serving.endurance import memory
from benchmarks.serving.load import NoGeneratorError, beside, load
from benchmarks.serving.parts import PARTS, Part
from benchmarks.serving.probes import PROBES
from benchmarks.serving.servers import Server
from benchmarks.serving.tables import able_table, deadline_table, value_table
from benchmarks.serving.task import Task, columns, kept

from chronostat.records import Conditions
from stand_ins.sample_run import CONDITIONS
from stand_ins.serving import MODEL, Scripted, picture_url, running


def told(client_ms, charged_ms, *, meetable=True, status=200, right=True):
    body = {"chronostat": {"charged_ms": charged_ms, "meetable": meetable}} if status == 200 else {"error": {}}
    return Told(client_ms=client_ms, status=status, body=body, right=right)


def task(**changed):
    return Task(**{"controller": Path("none"), "folder": Path("none"), "requests": 3, "seconds": 60.0, **changed})


def server_at(address, name="controller"):
    return Server(name=name, model=MODEL, address=address, process=None, errors=Path("none"))


def test_deadlines_are_kept_by_what_was_charged_and_by_what_the_client_waited():
    found = kept(
        [told(52, 49), told(48, 45), told(90, 80, meetable=False, right=False), told(1, 0, status=429, right=False)], 50
    )
    assert (found["asked"], found["answered"], found["right"]["point"], found["meetable"]) == (4, 3, 0.5, 0.5)
    assert found["kept"]["point"] == 0.5  # a request without an answer keeps nothing
    assert found["kept_as_the_client_waits"]["point"] == 0.25
    assert kept([told(52, 49, meetable=None)], 50)["meetable"] is None  # a server without a choice


def test_a_server_of_one_setting_is_judged_under_every_budget_by_the_same_answers():
    full = Arm(server=server_at("", "full"), fraction=None)
    chosen = Arm(server=server_at(""), fraction=0.7)
    for arm in (full, chosen):
        arm.told = {"one in flight": [told(66, 65), told(86, 85)], "poisson": [told(101, 100)]}
    found = rows([chosen, full], full_ms=100)
    assert {name: row["one in flight"]["kept"]["point"] for name, row in found.items()} == {
        "controller 0.7": 0.5,  # 65 of 70
        "full 0.5": 0.0,
        "full 0.7": 0.5,
        "full 0.9": 1.0,
    }
    assert found["full 0.9"]["poisson"]["kept"]["point"] == 0.0
    assert found["full 0.5"]["budget_ms"] == 50


def test_raw_values_are_kept_request_by_request_also_of_what_was_refused():
    kinds = columns([told(52.12345, 49.5), told(1, 0, status=429, right=False)])
    assert kinds["client_ms"] == [52.123, 1]
    assert kinds["charged_ms"] == [49.5, None]
    assert kinds["status"] == [200, 429]


def test_memory_of_the_last_quarter_is_compared_with_the_second():
    found = memory([90, 95, 100, 100, 100, 102, 101, 103, 7])  # the ninth look is left out
    assert found["resident_mib_by_quarter"] == [92.5, 100, 101, 102]
    assert found["last_quarter_over_second"]["point"] == pytest.approx(1.02)  # of 101 / 100 and 103 / 100
    with pytest.raises(ValueError, match="3 looks at it are fewer than four; ask for 16 --requests or more"):
        memory([1.0, 2.0, 3.0])


def test_what_guidellm_reports_is_put_beside_the_same_request_of_the_log():
    seen = {"time_to_first_token_ms": 66.0, "inter_token_latency_ms": 11.0, "request_latency": 0.105}
    requests = {"successful": [{"response_id": "b", **seen}], "errored": [{}], "incomplete": []}
    report = {"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [{"requests": requests}]}
    row = {"queue_ms": 2.0, "image_ms": 1.0, "wall_ms": 97.0, "total_ms": 90.0, "ttft_ms": 50.0}
    found = beside(report, {"a": {}, "b": {**row, "decode_ms_per_token": 10.0}})
    assert (found["requests"], found["errored"], found["generator"]) == (1, 1, "guidellm 0.8.1")
    assert found["request_ms"]["generator_over_server"]["point"] == pytest.approx(1.05)  # 105 / (2 + 1 + 97)
    assert found["ttft_ms"]["generator_over_server"]["point"] == pytest.approx(1.1)  # 66 / (100 - 90 + 50)
    assert found["itl_ms"]["generator_over_server"]["point"] == pytest.approx(1.1)
    assert found["raw"]["ttft_ms"] == {"generator": [66.0], "server": [60.0]}


def test_a_missing_load_generator_is_told_how_to_be_had():
    with pytest.raises(NoGeneratorError, match=r"pip install guidellm==0\.8\.1; then name it with --guidellm"):
        load(task(guidellm=None))


def test_asking_ends_with_the_seconds_but_never_before_it_began():
    assert list(task(seconds=0.0).in_time("abc")) == ["a"]
    assert list(task().in_time("abc")) == ["a", "b", "c"]


def test_a_part_that_fails_leaves_what_was_found_before_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    for module in (results, command):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({"raw": {"kill": {"lost": 0}, "load": {"errored": 5}}}))

    def breaks(_task):
        raise RuntimeError("the server is gone")

    def counts(task):
        return {"asked": task.requests, "seconds": task.seconds}

    options = Namespace(name="toy", controller=None, runs=None, requests=None, seconds=7.0, guidellm=None)
    parts = {"kill": Part(breaks, 1, 1.0), "load": Part(counts, 9, 1.0)}
    assert command.run_parts(parts, options, Conditions(**CONDITIONS)) == 1
    written = json.loads(path.read_text())["raw"]
    assert written["kill"] == {"lost": 0}
    assert (written["load"]["asked"], written["load"]["seconds"]) == (9, 7.0)
    assert written["load"]["conditions"]["machine"] == CONDITIONS["machine"]
    said = capsys.readouterr().err
    assert "RuntimeError: the server is gone" in said
    assert "failed: kill; of these the file is as before" in said


def test_all_parts_together_are_bounded():
    assert sum(part.seconds for part in PARTS.values()) <= 16 * 60


def test_our_server_can_all_that_is_probed(tmp_path):
    content = [{"type": "image_url", "image_url": {"url": picture_url()}}, {"type": "text", "text": "What?"}]
    question = Question(None, [{"role": "user", "content": content}])
    with running(tmp_path, Scripted()) as server:
        able = {name: probe(server_at(server.address), question) for name, probe in PROBES.items()}
        other = {name: probe(server_at(f"{server.address}/none"), question) for name, probe in PROBES.items()}
    assert able == dict.fromkeys(PROBES, True)
    assert other == dict.fromkeys(PROBES, False)


def test_what_was_found_is_shown_by_its_place():
    median = {"point": 2.0, "low": None, "high": None}
    found = {
        "a": {"b": {"point": 0.5, "low": 0.25, "high": 0.75}},
        "ms": {"median": median, "p5": 1.0, "p95": 3.0},
        "n": 4,
        "mib": [1.5, 2.0],
        "raw": {"x": [1, 2]},
    }
    assert value_table(found).splitlines()[2:] == [
        "| a, b | 0.500 [0.250, 0.750] |",
        "| ms | 2.000 [nan, nan], 1.000 to 3.000 |",
        "| n | 4 |",
        "| mib | 1.500, 2.000 |",
    ]


def test_deadlines_are_shown_a_row_for_each_server_and_budget():
    share = {"point": 0.9, "low": 0.8, "high": 0.95}
    ways = {way: {"kept": share, "right": share} for way in ("one in flight", "poisson")}
    (row,) = deadline_table({"fastest 0.5": ways}).splitlines()[2:]
    assert row == "| fastest | 0.5 |" + " 0.900 [0.800, 0.950] |" * 4


def test_what_servers_can_do_is_shown_as_yes_and_no():
    (row,) = able_table({"keys": {"ours": True, "theirs": False}}).splitlines()[2:]
    assert row == "| keys | no | yes |"
