"""The report: the numbers of the store appear, unlike ones are refused, nothing is loaded from elsewhere."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from chronostat.errors import StoreError, UnlikeConditions
from chronostat.records import NOT_CALLED, Conditions, Decision, Estimate, Execution, Setting, StageTiming, Trial
from chronostat.report import write_picture, write_report
from chronostat.report.run.gather import (
    choices_by_kind,
    invalid_reasons,
    learning_steps,
    look_at,
    measured_settings,
    stage_means,
)
from chronostat.report.run.machine import disturbances, drift_curve, machine_time, measured_twice, phase_costs
from chronostat.report.run.picture import Axis
from chronostat.report.text import (
    forecast_text,
    milliseconds,
    noise_floor_text,
    percent,
    percent_interval,
    points_interval,
)
from chronostat.runs.store import RunStore, Selected
from stand_ins.sample_run import BUDGETS, CONDITIONS, FULL, SETTINGS, a_step, a_trial, metadata, validation, write_run

LOADING = {"src", "href", "srcset", "data", "poster", "action", "background", "formaction", "xlink:href"}


class Page(HTMLParser):
    """What a test asks of a page: tables by id, text, figures' data, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: dict[str, Any] = {}
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.styles = ""
        self._texts: list[str] = []
        self._rows: list[list[str]] | None = None
        self._figure: str | None = None
        self._inside: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        """What a reader sees, in one line."""
        return " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self.addresses += [value or "" for name, value in attrs if name in LOADING]
        if tag == "table":
            self._rows = self.tables[given["id"] or ""] = []
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in {"td", "th"} and self._rows:
            self._rows[-1].append("")
        elif tag == "script":
            self._figure = given.get("data-for")
        if tag in {"script", "style", "td", "th"}:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside == "style":
            self.styles += data
        elif inside == "script" and self._figure:
            self.figures[self._figure] = json.loads(data)
        elif inside != "script":
            self._texts.append(data)
            if inside in {"td", "th"} and self._rows:
                self._rows[-1][-1] += data


def page_of(store: RunStore) -> Page:
    return Page(write_report(store).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run that has been validated."""
    return write_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def page(whole: RunStore) -> Page:
    return page_of(whole)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run", metadata(phases={})) as store:
        yield store


def traces(page: Page, figure: str) -> dict[str, Any]:
    return {trace["name"]: trace for trace in page.figures[figure]["data"]}


# --- A whole run ---


def test_the_page_is_in_the_run(whole: RunStore, page: Page) -> None:
    assert (whole.folder / "report.html").is_file()
    assert page.tags[0] == ("html", {"lang": "en"})
    assert "Chronostat: whole" in page.text


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert page.addresses == ["data:,"]
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_the_header_says_what_was_run(page: Page) -> None:
    for text in (
        "demo_vlm, 5,812,345 parameters",
        "0123456789abcdef" * 4,
        "prefill_ms: the image encoding and the prefill forward",
        "40.0 ms (calibrate), 41.0 ms (test)",
        "bench-1, Example CPU 9000 <fast>, cpu",
        "2026-03-04T05:06:07+00:00",
        "chronostat demo --seed 7",
        "0.21 to 0.97 of full",
        "every latency was measured inside the one real generate() call",
        "'learner': 'direct'".replace("'", '"'),
    ):
        assert text in page.text
    assert ("span", {"class": "badge measured"}) in page.tags


def test_the_verdict_table(page: Page) -> None:
    rows = page.tables["verdicts"]
    assert rows[0][:5] == ["policy", "accuracy", "controller's gain (points)", "budget kept", "mean latency"]
    # 0.3 * 40 ms
    assert rows[1] == [
        "mean 0.30 of full = 12.0 ms; best fixed setting by all evidence (accuracy expected of it 77.1 %; the truly "
        "best one may be 1.3 points better); the controller treats all requests alike"
    ]
    # 0.98 * 12 ms = 11.76 ms; * 0.97 = 11.4 ms; * 1.4 = 16.5 ms
    numbers = ["11.8 ms [11.1, 12.5]", "29.4 %", "61.0 % [58.0, 64.0]", "11.4 ms", "16.5 ms", "312"]
    used = "62 % vision_tokens=10 moe_topk=2 block_skip=-; 38 % vision_tokens=40 moe_topk=2 block_skip=-"
    assert rows[2] == ["controller", "81.3 % [77.2, 85.4]", "", "yes", *numbers, used]
    assert rows[3][:4] == ["best fixed", "76.3 % [72.2, 80.4]", "+5.0 [+1.6, +8.4]", "yes"]
    assert [row[0] for row in rows[2:6]] == ["controller", "best fixed", "static mix", "full"]
    assert rows[5][2:4] == ["-12.5 [-15.9, -9.1]", "no"]
    assert len(rows) == 1 + len(BUDGETS) * 5


def test_each_budget_says_whether_the_controller_looks_at_the_request(page: Page) -> None:
    heads = [row[0] for row in page.tables["verdicts"][1:] if len(row) == 1]
    assert len(heads) == len(BUDGETS)
    assert ["looks at the request" in head for head in heads] == [False, True, True, True, True, True]
    text = (
        "learned share the controller looks at the request under 5 of 6 budgets; under mean 0.30 the evidence for that"
    )
    assert text in page.text


def test_a_verdict_of_an_older_version_says_what_it_knows(tmp_path: Path) -> None:
    store = write_run(tmp_path / "old")
    old = Selected(setting=str(SETTINGS[8]), n=200, validation_accuracy=0.771)
    verdict = replace(validation(), selection={str(budget): old for budget in BUDGETS})
    with store:
        store.write_json("validation.json", verdict.to_json())
    shown = page_of(store)
    assert shown.tables["verdicts"][1] == [
        "mean 0.30 of full = 12.0 ms; best fixed setting found on 200 validation samples (accuracy there 77.1 %)"
    ]
    assert "learned share" not in shown.text


def test_samples_that_nothing_brings_in_time_are_said_beside_their_budget(tmp_path: Path) -> None:
    store = write_run(tmp_path / "late")
    verdict = validation()
    late = [replace(score, unmeetable=12 if score.budget == BUDGETS[3] else 0) for score in verdict.scores]
    with store:
        store.write_json("validation.json", replace(verdict, scores=tuple(late)).to_json())
    heads = [row[0] for row in page_of(store).tables["verdicts"][1:] if len(row) == 1]
    said = (
        "12 of 312 samples take longer under every setting that was measured on them, so they count for no policy here"
    )
    assert [said in head for head in heads] == [False, False, False, True, False, False]


def test_the_error_of_the_forecast_stands_beside_that_of_measuring_once(page: Page, tmp_path: Path) -> None:
    known = "half of 672 executions differ by more than 9.4 % from a forecast that did not know them"
    assert f"{known}; from one earlier measurement of the same by more than 8.3 % (noise floor)" in page.text
    trained = page_of(write_run(tmp_path / "trained", until="train"))
    assert known in trained.text
    assert "from one earlier measurement" not in trained.text  # nothing ran twice
    noise = validation().noise
    assert noise is not None
    assert forecast_text({"error": 0.094, "executions": 672}, replace(noise, spread=float("nan"))) == known


def test_each_budget_has_its_conclusion(page: Page) -> None:
    sentence = "mean 0.40: the controller is +5.0 [+1.6, +8.4] points from the best fixed setting: better; the mean"
    assert sentence + " budget was kept." in page.text


def test_every_fixed_setting_is_listed(page: Page) -> None:
    rows = page.tables["settings"]
    assert [row[0] for row in rows[1:]] == [str(setting) for setting in SETTINGS]
    # accuracy 0.4 + 0.54, mean 40 +- 0.6 ms, p95 1.4 * 40 ms
    assert rows[1][1:] == ["94.0 % [89.5, 98.5]", "40.0 ms [39.4, 40.6]", "56.0 ms", "312"]


def test_accuracy_against_latency(page: Page) -> None:
    shown = traces(page, "accuracy")
    assert list(shown) == [
        "fixed setting",
        "full",
        "best fixed of a budget",
        "static mix of two",
        "controller, mean budgets",
        "controller, deadline budgets",
    ]
    assert len(shown["fixed setting"]["x"]) == 15
    assert shown["full"]["x"] == [40.0]
    controller = shown["controller, mean budgets"]
    assert controller["y"] == pytest.approx([81.3, 83.3, 85.3])
    assert controller["x"] == pytest.approx([11.76, 15.68, 19.6])  # 0.98 * fraction * 40 ms
    assert controller["error_y"]["array"] == pytest.approx([4.1] * 3)
    symbols = {trace["marker"]["symbol"] for trace in shown.values()}
    assert len(symbols) == len(shown), "told apart without colour"


def test_stages_of_full_and_of_what_was_chosen(page: Page) -> None:
    shown = traces(page, "stages")
    assert list(shown) == [
        "vision_ms",
        "projector_ms",
        "llm_prefill_ms",
        "prefill_rest_ms",
        "decode_ms",
        "other_ms",
    ]
    bars = shown["projector_ms"]
    assert bars["x"] == pytest.approx([0.6] * 5)
    assert bars["y"][0] == "full:<br>vision_tokens=80<br>moe_topk=2<br>block_skip=-"
    shares = [sum(trace["customdata"][i] for trace in shown.values()) for i in range(5)]
    assert shares == pytest.approx([100.0] * 5)


def test_choices(page: Page) -> None:
    by_budget = traces(page, "choices-by-budget")["chosen"]
    assert by_budget["x"][:4] == ["mean<br>0.30", "mean<br>0.40", "mean<br>0.50", "deadline<br>0.40"]
    assert by_budget["y"][:4] == [f"vision_tokens={tokens}" for tokens in (80, 40, 20, 10)]
    assert [row[0] for row in by_budget["z"][:4]] == [0, 60, 0, 40]  # 2 of 5 kinds are easy
    by_kind = traces(page, "choices-by-kind")["chosen"]
    assert by_kind["x"] == ["color", "count", "digit", "shape", "sum"]
    assert by_kind["z"][3] == [100, 0, 0, 100, 0]  # vision_tokens=10
    assert "permutation test that they differ: p = 0.0004" in page.text


def test_the_learning_curve_leaves_out_what_is_no_number(page: Page) -> None:
    shown = traces(page, "learning")
    assert list(shown) == [
        "quality, each step",
        "quality, mean of 5",
        "latency / full, each step",
        "latency / full, mean of 5",
    ]
    assert len(shown["quality, each step"]["x"]) == 119  # one of 120 has no quality
    assert shown["quality, each step"]["x"][0] == pytest.approx(0.9)  # 900 ms
    latency = shown["latency / full, mean of 5"]["y"]
    assert latency[0] == pytest.approx(0.7)
    assert latency[-1] == pytest.approx(0.7 - 117 / 500)  # mean of steps 115 to 119


def test_the_counts_agree(page: Page) -> None:
    assert page.tables["phases"][1:] == [
        ["calibrate", "21.5 s", "10", "160", "0", "160", "yes"],
        ["select", "9.5 s", "10", "60", "0", "60", "yes"],
        ["train", "149.8 s", "120", "452", "0", "452", "yes"],
        ["test", "61.0 s", "40", "648", "1", "648", "yes"],
    ]
    assert "In every phase the stored executions equal the generate() calls that were counted." in page.text
    assert page.tables["failures"][1:] == [["test", "RuntimeError: out of memory", "1"]]


def test_failures_that_differ_in_numbers_are_counted_together(tmp_path: Path) -> None:
    late = [f"GenerationTimeout: the generation took 0.{part} s, more than its limit of 0.05 s" for part in (9, 53, 71)]
    with RunStore.create(tmp_path / "run", metadata()) as store:
        for index, invalid in enumerate([*late, "RuntimeError: out of memory"]):
            failed = a_trial().executions[2]
            store.append(a_trial(index, executions=(replace(failed, invalid=invalid),), draws=(1,), anchor=None))
        assert invalid_reasons(look_at(store)) == [("train", late[0], 3), ("train", "RuntimeError: out of memory", 1)]


def test_conditions_are_listed(page: Page) -> None:
    assert page.tables["conditions"][1:] == [[name, str(value)] for name, value in CONDITIONS.items()]


def test_readers_who_do_not_see_are_told(page: Page) -> None:
    plots = [given for tag, given in page.tags if tag == "div" and given.get("class") == "plot"]
    assert len(plots) == 7
    assert all(given["role"] == "img" and len(given["aria-label"] or "") > 40 for given in plots)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("figcaption") == 7
    assert tags.count("caption") == len(page.tables)
    assert all("scope" in given for tag, given in page.tags if tag == "th")
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))


def test_how_to_ask_the_store_is_true(whole: RunStore, page: Page) -> None:
    match = re.search(r'store\.query\(""" (.+?) """\)', page.text)
    assert match
    assert len(whole.query(match[1]).fetchall()) == 4 * len(SETTINGS)  # phases


# --- Parts of a run ---


def test_only_measured(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", until="measure"))
    assert list(page.figures) == ["stages", "anchors"]
    assert "verdicts" not in page.tables
    assert len(page.tables["settings"]) == 1 + len(SETTINGS)
    assert "this is no verdict" in page.text
    assert "Nothing was trained in this run" in page.text
    assert "Nothing was validated yet" in page.text


def test_only_trained(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", until="train"))
    assert list(page.figures) == ["stages", "learning", "anchors"]
    assert "Nothing was validated yet" in page.text
    assert "Nothing was trained" not in page.text


def test_an_empty_run(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", {}) as store:
        page = page_of(store)
    assert page.figures == {}
    assert page.tables == {}
    assert "model not recorded" in page.text
    assert len(write_report(store).read_bytes()) < 20_000  # no library for no figure


def test_a_run_whose_stages_were_not_seen_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", source="total_only", metric="total_ms", until="train"))
    assert ("span", {"class": "badge total_only"}) in page.tags
    assert ("p", {"id": "source", "class": "warning", "role": "note"}) in page.tags
    assert "only the whole generate() call was measured" in page.text
    assert list(page.figures) == ["learning", "anchors"]


def test_counts_that_do_not_agree_are_shown(tmp_path: Path) -> None:
    phases = {"calibrate": {"seconds": 1.0, "generate_calls": 161}}
    page = page_of(write_run(tmp_path / "run", until="measure", phases=phases))
    assert page.tables["phases"][1][-1] == "no"
    assert "DO NOT equal" in page.text


def test_an_execution_that_failed_before_its_call_was_not_called(tmp_path: Path) -> None:
    with write_run(tmp_path / "run", until="measure", phases={"train": {"seconds": 1.0, "generate_calls": 1}}) as store:
        for index, reason in enumerate(("RuntimeError: broken", f"ValueError: broken; {NOT_CALLED}")):
            failed = Execution(sample_id="s", split="train", setting=FULL, timing=None, invalid=reason)
            store.append(Trial(phase="train", index=index, sample_id="s", executions=(failed,)))
    page = page_of(store)
    (row,) = [row for row in page.tables["phases"] if row[0] == "train"]
    assert row[3:] == ["2", "2", "1", "yes"]


def test_counts_that_were_not_made_are_no_agreement(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", until="measure", phases={}))
    assert page.tables["phases"][1][-2:] == ["not recorded", "not recorded"]
    assert "No generate() calls were counted." in page.text


# --- Refusals ---


def test_two_sources_are_refused(tmp_path: Path) -> None:
    with write_run(tmp_path / "run", until="measure") as store:
        timing = StageTiming(source="total_only", total_ms=1.0, new_tokens=1, decode_steps=0, unseen="?")
        other = Execution(sample_id="s", split="train", setting=FULL, timing=timing)
        store.append(Trial(phase="train", index=0, sample_id="s", executions=(other,)))
    message = r"more than one source \(measured: 160 executions; total_only: 1 executions\); run anew"
    with pytest.raises(UnlikeConditions, match=message) as caught:
        write_report(store)
    assert caught.value.exit_code == 7
    assert not store.holds("report.html")


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({"metric": "total_ms"}, "metric is prefill_ms, but it was validated with total_ms; validate it again"),
        ({"source": "total_only"}, r"more than one source \(measured: .*total_only: validation.json\)"),
        (
            {"conditions": Conditions(**{**CONDITIONS, "threads": 4, "machine": "bench-2"})},
            "machine: bench-1 != bench-2; threads: 1 != 4",
        ),
    ],
)
def test_a_validation_that_is_unlike_the_run_is_refused(tmp_path: Path, judged: dict[str, Any], message: str) -> None:
    with write_run(tmp_path / "run") as store:
        store.write_json("validation.json", replace(validation(), **judged).to_json())
    with pytest.raises(UnlikeConditions, match=message):
        write_report(store)
    with pytest.raises(UnlikeConditions, match=message):
        write_picture(store, tmp_path / "picture.svg")


def test_equal_conditions_are_accepted(tmp_path: Path) -> None:
    with write_run(tmp_path / "run") as store:
        judged = replace(validation(), metric="prefill_ms", source="measured", conditions=Conditions(**CONDITIONS))
        store.write_json("validation.json", judged.to_json())
    assert "verdicts" in page_of(store).tables


@pytest.mark.parametrize(("key", "value"), [("metric", "latency"), ("source", "guessed"), ("source", 5)])
def test_unknown_definitions_are_refused(tmp_path: Path, key: str, value: object) -> None:
    with (
        RunStore.create(tmp_path / "run", {key: value}) as store,
        pytest.raises(StoreError, match=f"run.json: {key} = '?{value}'?; allowed are "),
    ):
        write_report(store)


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_run(tmp_path / "run", until="measure")
    before = write_report(store).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*report\.html: No space left on device"):
        write_report(store)
    assert (store.folder / "report.html").read_bytes() == before


# --- Names from outside ---


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    run = metadata(model={"name": evil, "fingerprint": evil}, command=evil, config={"data": evil}, phases={})
    with RunStore.create(tmp_path / "run", run) as store:
        timing = StageTiming(source="measured", total_ms=1.0, new_tokens=1, decode_steps=0, prefill_ms=1.0)
        one = Execution(sample_id=evil, split="test", setting=FULL, timing=timing, kind=evil)
        store.append(Trial(phase="test", index=0, sample_id=evil, executions=(one,)))
        store.append(
            Decision(sample_id=evil, split="test", kind=evil, budget=BUDGETS[0], setting=FULL, controller_ms=0.1)
        )
        page = page_of(store)
    scripts = [given for tag, given in page.tags if tag == "script"]
    assert len(scripts) == len(page.figures) + 2  # plotly and our own
    assert page.text.count(evil) == 4  # title of the model, fingerprint, command, configuration
    assert traces(page, "choices-by-kind")["chosen"]["x"] == [evil.replace(" ", "<br>")]


# --- Numbers by hand ---


def timed(total_ms: float, sample: str, **stages: float) -> Execution:
    timing = StageTiming(source="measured", total_ms=total_ms, new_tokens=2, decode_steps=1, **stages)
    return Execution(sample_id=sample, split="test", setting=FULL, timing=timing, quality=1.0)


def test_stage_means_by_hand(store: RunStore) -> None:
    first = timed(10.0, "a", prefill_ms=6.0, vision_ms=2.0, llm_prefill_ms=4.0, decode_ms=3.0, other_ms=1.0)
    second = timed(20.0, "b", prefill_ms=12.0, vision_ms=4.0, llm_prefill_ms=8.0, decode_ms=9.0, other_ms=-1.0)
    for index, execution in enumerate((first, second)):
        store.append(Trial(phase="test", index=index, sample_id=execution.sample_id, executions=(execution,)))
    store.append(Trial(phase="warmup", index=0, sample_id="a", executions=(timed(99.0, "a", prefill_ms=99.0),)))
    phases, (means,) = stage_means(look_at(store))
    assert phases == "test"
    # (2 + 4) / 2, no projector, (4 + 8) / 2, nothing left, (3 + 9) / 2, (1 - 1) / 2
    assert means == (str(FULL), 2, (3.0, 0.0, 6.0, 0.0, 6.0, 0.0))
    (measured,) = measured_settings(look_at(store))
    # mean and median (6 + 12) / 2; 6 + 0.95 * 6
    assert measured == pytest.approx((str(FULL), 2, 1.0, 9.0, 9.0, 11.7))


def test_anchors_of_a_later_process_follow_the_earlier_ones(store: RunStore) -> None:
    for phase, started_s in (("train", 1.0), ("train", 5.0), ("test", 0.5), ("test", 2.0)):
        ran = (timed(10.0, "a", prefill_ms=started_s),)
        store.append(Trial(phase=phase, index=0, sample_id="a", executions=ran, anchor=0, started_s=started_s))
    points = machine_time(look_at(store)).anchors
    assert points == [
        ("train", 1.0, 1.0, None),
        ("train", 5.0, 5.0, None),
        ("test", 5.5, 0.5, None),
        ("test", 7.0, 2.0, None),
    ]


def test_the_drift_curve_goes_through_the_anchors(page: Page, whole: RunStore) -> None:
    shown = traces(page, "anchors")
    assert list(shown) == [
        "low",
        "95 % interval",
        "drift",
        "calibrate",
        "select",
        "train",
        "test",
        "known at the time",
    ]
    run = look_at(whole)
    anchors = machine_time(run).anchors
    assert len(anchors) == len(shown["drift"]["x"]) > 50
    full_ms, curve = drift_curve(run, anchors)
    assert full_ms == 40.0  # of the calibration
    for low, middle, high in zip(shown["low"]["y"], shown["drift"]["y"], shown["95 % interval"]["y"], strict=True):
        assert low < middle < high
    # the made-up machine does not drift: 10 % of noise stays out of the curve
    levels = [each.point for each in curve]
    assert max(levels) / min(levels) < 1.15
    known = shown["known at the time"]["y"]
    assert (known[0], known[10 + 119]) == pytest.approx((40.0, 40.0 * 1.119))
    assert "Dotted: what was known when a trial began" in page.text


def test_the_noise_floor(page: Page, whole: RunStore) -> None:
    pairs = measured_twice(look_at(whole))
    assert [pair.sample for pair in pairs] == [f"test-{i}" for i in range(0, 40, 5)]
    shown = traces(page, "noise")
    assert list(shown) == ["undisturbed"]
    assert shown["undisturbed"]["y"] == pytest.approx([100 * (pair.ratio - 1) for pair in pairs])
    assert page.tables["noise-floor"][1] == [
        "60",
        "57",
        "8.3 %",
        "1.001 [0.991, 1.011]",
        "same",
        "3 stolen CPU time",
    ]
    text = "half of 57 pairs of full against itself differ by more than 8.3 %; 3 of 60 pairs left out"
    assert text in page.text


def test_a_noise_floor_that_no_pair_told() -> None:
    noise = validation().noise
    assert noise is not None
    none = replace(noise, spread=float("nan"), comparison=replace(noise.comparison, pairs=0))
    assert noise_floor_text(none) == "not known; 60 of 60 pairs left out"


def test_verdicts_paired_by_sample(page: Page) -> None:
    rows = page.tables["comparisons"]
    assert len(rows) == 1 + 2 * len(BUDGETS)
    ratio = "0.912 [0.892, 0.932]"
    assert rows[1] == [
        "mean 0.30",
        "best fixed",
        "+5.0 [+1.6, +8.4]",
        "better",
        ratio,
        "faster",
        "297",
        "15 stolen CPU time",
    ]
    assert "Judging ended because all samples were judged." in page.text


def test_what_was_disturbed_is_counted_by_phase_and_reason(page: Page, whole: RunStore) -> None:
    # of 10 calibrated samples number 7; of 40 judged ones 7 and 27, each under 16 settings
    found = {(each.phase, each.reason): (each.executions, each.of_all) for each in disturbances(look_at(whole))}
    assert found["calibrate", "stolen CPU time"] == found["calibrate", "cgroup throttled"] == (16, 160)
    assert found["test", "cgroup throttled"] == (32, 648)
    assert ["test", "stolen CPU time", "32", "4.9 %"] in page.tables["disturbed"]


def test_settings_that_were_taken_out_are_named(page: Page) -> None:
    assert page.tables["taken-out"][1:] == [[str(SETTINGS[5]), "RuntimeError: out of memory"]]


def test_what_measuring_cost_by_hand(store: RunStore) -> None:
    def ran(setting: Setting, total_ms: float, controller_ms: float = 0.0) -> Execution:
        timing = StageTiming(source="measured", total_ms=total_ms, new_tokens=1, decode_steps=0, prefill_ms=1.0)
        return Execution(
            sample_id="a",
            split="train",
            setting=setting,
            timing=timing,
            preprocess_ms=2.0,
            controller_ms=controller_ms,
        )

    other = SETTINGS[3]
    undrawn = (ran(other, 30.0, 1.0), ran(FULL, 50.0, 1.0))  # the anchor was not drawn
    store.append(Trial(phase="train", index=0, sample_id="a", executions=undrawn, draws=(0,), anchor=1))
    twice = (ran(FULL, 60.0), ran(other, 30.0), ran(FULL, 70.0))  # the second time costs 70
    store.append(Trial(phase="test", index=0, sample_id="a", executions=twice, draws=(0, 1), anchor=0))
    train, test = phase_costs(look_at(store))
    # 30 + 50 executed, 2 * (2 + 1) around, 50 of it an anchor that nobody drew
    assert train == ("train", 2, 80.0, 6.0, 50.0, 0.0, 0)
    assert test == ("test", 3, 160.0, 6.0, 0.0, 70.0, 0)


def test_a_step_that_a_resumed_run_repeats_counts_once(store: RunStore) -> None:
    for index in (0, 1, 2, 1, 2, 3):
        store.append(a_step(index))
    assert [step.index for step in learning_steps(look_at(store))] == [0, 1, 2, 3]


def test_choices_outside_the_recorded_space_are_shown(store: RunStore) -> None:
    common = {"split": "test", "budget": BUDGETS[0], "controller_ms": 0.1}
    store.append(
        [
            Decision(sample_id="a", kind="sum", setting=Setting(vision_tokens=80), **common),
            Decision(sample_id="b", kind="sum", setting=Setting(vision_tokens=5), **common),
            Decision(sample_id="c", kind=None, setting=Setting(vision_tokens=80), **common),
        ]
    )
    choices = choices_by_kind(look_at(store), BUDGETS[0])
    assert choices.columns == ["any", "sum"]
    shares = dict(zip(choices.values, choices.shares, strict=True))
    assert shares["vision_tokens=80"] == [1.0, 0.5]
    assert shares["vision_tokens=5"] == [0.0, 0.5]
    assert shares["moe_topk=1"] == [0.0, 0.0]


def test_numbers_as_text() -> None:
    assert milliseconds(12.34) == "12.3 ms"
    assert milliseconds(None) == "not recorded"
    assert percent(float("nan")) == "invalid"
    assert points_interval(Estimate(point=-0.0125, low=-0.05, high=0.02)) == "-1.2 [-5.0, +2.0]"
    assert points_interval(None) == ""
    assert percent_interval(Estimate(point=1.0, low=float("nan"), high=float("nan"))) == "100.0 % [invalid, invalid]"


# --- The picture ---


def test_the_picture(whole: RunStore, tmp_path: Path) -> None:
    path = write_picture(whole, tmp_path / "picture.svg")
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    svg = "{http://www.w3.org/2000/svg}"
    groups = {group.get("data-series"): group for group in root.iter(f"{svg}g") if group.get("data-series")}
    assert list(groups) == [
        "fixed setting",
        "full",
        "best fixed of a budget",
        "static mix of two",
        "controller, deadline",
        "controller, mean",
    ]
    assert len(groups["fixed setting"].findall(f"{svg}circle")) == 15
    assert [text.text for text in groups["controller, mean"].findall(f"{svg}text")] == ["0.3", "0.4", "0.5"]
    line = groups["controller, mean"].find(f"{svg}polyline")
    assert line is not None
    corners = [[float(part) for part in corner.split(",")] for corner in line.get("points", "").split()]
    # 11.76, 15.68, 19.6 ms and 81.3, 83.3, 85.3 %: even steps to the right and up
    assert corners[2][0] - corners[1][0] == pytest.approx(corners[1][0] - corners[0][0], abs=0.2)
    assert corners[0][0] < corners[1][0]
    assert corners[0][1] > corners[1][1] > corners[2][1]
    words = " ".join(root.itertext())
    assert "312 test samples, measured prefill_ms + controller_ms, Example CPU 9000 <fast>" in words
    assert "mean prefill_ms + controller_ms (ms)" in words


def test_the_picture_needs_a_verdict(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run", until="train")
    with pytest.raises(StoreError, match="has no verdict to draw; run chronostat validate on it first"):
        write_picture(store, tmp_path / "picture.svg")


def test_the_picture_survives_an_invalid_interval(whole: RunStore, tmp_path: Path) -> None:
    nan = float("nan")
    with write_run(tmp_path / "run") as store:
        judged = validation()
        constant = Estimate(point=1.0, low=nan, high=nan)
        fixed = tuple(replace(score, accuracy=constant) for score in judged.fixed)
        store.write_json("validation.json", replace(judged, fixed=fixed).to_json())
    ET.fromstring(write_picture(store, tmp_path / "picture.svg").read_text(encoding="utf-8"))
    assert "100.0 % [invalid, invalid]" in page_of(store).text
    stored = (store.folder / "validation.json").read_text(encoding="utf-8")
    assert '"low": null' in stored
    assert "NaN" not in stored  # which is no JSON


def test_axis() -> None:
    axis = Axis(low=0.0, high=42.0, start_px=100.0, end_px=520.0)
    assert axis.ticks() == [0, 10, 20, 30, 40]
    assert axis.px(21.0) == 310.0  # half way between 100 and 520
    assert Axis(low=0.52, high=0.97, start_px=0, end_px=1).ticks() == pytest.approx([0.6, 0.7, 0.8, 0.9])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_picture_of_answers_that_are_all_right_or_all_wrong(tmp_path: Path, share: float) -> None:
    same = Estimate(point=share, low=share, high=share)
    with write_run(tmp_path / "run") as store:
        judged = validation()
        fixed = tuple(replace(score, accuracy=same) for score in judged.fixed)
        scores = tuple(replace(score, accuracy=same) for score in judged.scores)
        store.write_json("validation.json", replace(judged, fixed=fixed, scores=scores).to_json())
    text = write_picture(store, tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert f">{100 * share:.0f} %<" in text
    assert re.findall(r"nan|inf\b|105 %", text) == []


def test_the_picture_of_one_sample_whose_intervals_are_all_invalid(tmp_path: Path) -> None:
    nan = float("nan")
    one = Estimate(point=0.5, low=nan, high=nan)
    with write_run(tmp_path / "run") as store:
        judged = validation()
        fixed = tuple(replace(score, accuracy=one) for score in judged.fixed)
        scores = tuple(replace(score, accuracy=one) for score in judged.scores)
        store.write_json("validation.json", replace(judged, fixed=fixed, scores=scores).to_json())
    assert "nan" not in write_picture(store, tmp_path / "picture.svg").read_text(encoding="utf-8")
