"""Records hold their own rules."""

from dataclasses import FrozenInstanceError, replace

import pytest

from chronostat.errors import BudgetError, KnobError, MeasurementError, UnlikeConditions
from chronostat.records import LATENCY_METRICS, Budget, Conditions, Execution, Setting, StageTiming, Trial

TIMING = StageTiming(
    source="measured", total_ms=90.0, new_tokens=3, decode_steps=2, ttft_ms=70.0, prefill_ms=60.0, llm_prefill_ms=40.0
)
EXECUTION = Execution(
    sample_id="a", split="train", setting=Setting(), timing=TIMING, preprocess_ms=5.0, controller_ms=0.5
)


def test_settings_are_equal_in_any_order():
    first, second = Setting(moe_topk=1, block_skip=(2, 3)), Setting({"block_skip": (2, 3), "moe_topk": 1})
    assert first == second
    assert hash(first) == hash(second)
    assert first != Setting(moe_topk=1)
    assert first != {"moe_topk": 1, "block_skip": (2, 3)}
    assert dict(first) == {"moe_topk": 1, "block_skip": (2, 3)}


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("full", Setting()),
        ("vision_tokens=80 moe_topk=1 block_skip=2,3", Setting(vision_tokens=80, moe_topk=1, block_skip=(2, 3))),
        ("vision_tokens=0.25", Setting(vision_tokens=0.25)),
        ("vision_tokens=7e-05", Setting(vision_tokens=7e-05)),
        ("block_skip=-", Setting(block_skip=())),
        ("block_skip=4,", Setting(block_skip=(4,))),
    ],
)
def test_settings_as_text(text, setting):
    assert str(setting) == text
    assert Setting.parse(text) == setting


@pytest.mark.parametrize("text", ["vision_tokens", "=3", "moe_topk=", "moe_topk=two", "block_skip=1,x", "a=1.5.5"])
def test_what_is_no_setting(text):
    with pytest.raises(
        KnobError, match=r"cannot read .* as a knob setting; write knob=value, for example vision_tokens=80"
    ):
        Setting.parse(text)


def test_a_setting_that_names_a_knob_twice():
    with pytest.raises(KnobError, match="'a=1 b=3 a=2' names a 2 times; name each knob once"):
        Setting.parse("a=1 b=3 a=2")


def test_budgets():
    assert Budget(kind="mean", fraction=0.4).ms(80.0) == pytest.approx(32)
    assert str(Budget(kind="deadline", fraction=0.4)) == "deadline 0.40"
    for kind, fraction in (("mean", 0), ("mean", -1), ("mean", float("nan")), ("mean", float("inf")), ("never", 0.4)):
        with pytest.raises(BudgetError, match="the kind is mean or deadline, the fraction of full a positive number"):
            Budget(kind=kind, fraction=fraction)


def test_latency_by_every_metric():
    values = {"prefill_ms": 60.0, "llm_prefill_ms": 40.0, "ttft_ms": 70.0, "total_ms": 90.0, "request_ms": 95.0}
    assert {metric: EXECUTION.latency_ms(metric) for metric in LATENCY_METRICS} == values


def test_the_controllers_time_is_charged_once():
    assert EXECUTION.charged_ms("prefill_ms") == 60.5
    assert EXECUTION.charged_ms("request_ms") == EXECUTION.request_ms == 5.0 + 0.5 + 90.0


def test_a_failure_is_never_a_number():
    failed = replace(EXECUTION, timing=None, invalid="out of memory")
    assert failed.request_ms is None
    for metric in LATENCY_METRICS:
        with pytest.raises(MeasurementError, match=f"execution of a failed \\(out of memory\\); it has no {metric}"):
            failed.latency_ms(metric)


def test_a_stage_that_was_not_seen_is_not_a_number():
    unseen = replace(TIMING, source="total_only", prefill_ms=None, unseen="no blocks")
    execution = replace(EXECUTION, timing=unseen)
    assert execution.latency_ms("total_ms") == 90.0
    with pytest.raises(MeasurementError, match=r"prefill_ms of a was not seen \(no blocks\); .* use latency_metric = "):
        execution.charged_ms("prefill_ms")


@pytest.mark.parametrize("values", [{"timing": None}, {"invalid": "boom"}])
def test_an_execution_has_a_timing_or_a_reason(values):
    with pytest.raises(MeasurementError, match="either a timing or a reason why it is invalid, never both"):
        replace(EXECUTION, **values)


@pytest.mark.parametrize(
    ("draws", "anchor", "asked"),
    [
        ((0, 1, 1), None, 3),  # the third is one that ran again
        ((0, 1, 1), 2, 2),  # full was only due
        ((0, 2, 1), 2, 3),  # full was drawn as well
        ((), None, 3),
    ],
)
def test_an_anchor_that_nobody_drew_was_not_asked_for(draws, anchor, asked):
    trial = Trial(phase="train", index=0, sample_id="a", executions=(EXECUTION,) * 3, draws=draws, anchor=anchor)
    assert trial.asked == asked


def test_records_cannot_be_changed():
    for record, name in ((EXECUTION, "quality"), (TIMING, "total_ms"), (Setting(moe_topk=1), "pairs")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, None)


def test_unlike_conditions_are_refused_by_name():
    mine = Conditions(
        machine="m",
        cpu="c",
        cores=2,
        device="cpu",
        driver="none",
        threads=1,
        torch="2",
        transformers="5",
        dtype="float32",
        attention="sdpa",
    )
    mine.require_comparable(replace(mine))
    with pytest.raises(UnlikeConditions, match=r"conditions: threads: 1 != 2; torch: 2 != 3$"):
        mine.require_comparable(replace(mine, threads=2, torch="3"))
