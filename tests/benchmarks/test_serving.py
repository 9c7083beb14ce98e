"""What the benchmark of serving makes of answers, counted by hand."""

from benchmarks.serving.__main__ import deadline_table, table
from benchmarks.serving.asking import Told
from benchmarks.serving.parts import _kept


def told(client_ms, charged_ms, *, meetable=True, status=200, right=True):
    body = {"chronostat": {"charged_ms": charged_ms, "meetable": meetable}} if status == 200 else {"error": {}}
    return Told(client_ms=client_ms, status=status, body=body, right=right)


def test_deadlines_are_kept_by_what_was_charged_and_by_what_the_client_waited():
    kept = _kept(
        [told(52, 49), told(48, 45), told(90, 80, meetable=False, right=False), told(1, 0, status=429, right=False)], 50
    )
    assert (kept["answered"], kept["right"], kept["meetable"]) == (3, 0.5, 0.5)
    assert kept["kept"]["point"] == 0.5  # a request without an answer keeps nothing
    assert kept["kept_as_the_client_waits"]["point"] == 0.25


def test_what_was_found_is_shown_by_its_place():
    found = {"a": {"b": {"point": 0.5, "low": 0.25, "high": 0.75}}, "ms": {"p5": 1.0, "p50": 2.0, "p95": 3.0}, "n": 4}
    rows = table(found).splitlines()[2:]
    assert rows == ["| a, b | 0.500 [0.250, 0.750] |", "| ms | 2.00 (1.00 to 3.00) |", "| n | 4 |"]


def test_deadlines_are_shown_a_row_for_each_server_and_budget():
    kept = {"point": 0.9, "low": 0.8, "high": 0.95}
    ways = {"one in flight": {"kept": kept, "right": 0.5}, "poisson": {"kept": kept, "right": 0.25}}
    (row,) = deadline_table({"rows": {"fastest 0.5": ways}}).splitlines()[2:]
    assert row == "| fastest | 0.5 | 0.900 [0.800, 0.950] | 0.500 | 0.900 [0.800, 0.950] | 0.250 |"
