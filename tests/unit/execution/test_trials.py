"""Trials: random order from the seed, shared draws, the anchor by time, failures with their reason and no number."""

import sys

import pytest
import torch

from chronostat.control.calibration import check_source
from chronostat.data.quality import exact
from chronostat.errors import DataError, KnobError, MeasurementError
from chronostat.execution.execute import BatchRequest
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import applied
from chronostat.measure.clock import FakeClock
from chronostat.records import Budget, Estimate, Setting
from stand_ins.molmo_like import molmo_batch, molmo_like
from stand_ins.observing import Snapshot, delay

FULL = Setting(moe_topk=2, block_skip=())
FAST = Setting(moe_topk=1, block_skip=(1,))
OTHERS = [Setting(moe_topk=topk, block_skip=skip) for topk in (1, 2) for skip in ((1,), (2,), (1, 2))]
REQUEST = BatchRequest(batch=molmo_batch(), id="molmo-1", split="train", kind="count", score=lambda _: 1.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def model():
    model = molmo_like()
    with applied(FAST, model, None):
        """The knobs look at the model once, so that the calls of a test are its own."""
    return model


@pytest.fixture
def runner(model, clock):
    return make_runner(model, clock)


def make_runner(model, clock, **options):
    options = {"seed": 0, "anchor_every_s": 3.0, "keep": lambda _: None, **options}
    return TrialRunner(model=model, processor=None, quality=None, full=FULL, max_new_tokens=2, clock=clock, **options)


def settings_in_order(trial):
    return [execution.setting for execution in trial.executions]


def test_equal_draws_share_one_execution(runner):
    runner.run("train", 0, REQUEST, [FULL])  # the anchor is fresh afterwards
    trial = runner.run("train", 1, REQUEST, [FAST, OTHERS[1], FAST, FAST])
    assert len(trial.executions) == 2
    assert [trial.executions[i].setting for i in trial.draws] == [FAST, OTHERS[1], FAST, FAST]
    assert trial.anchor is None


def test_the_order_follows_from_seed_phase_and_index(model, clock):
    def order(seed, phase, index):
        return settings_in_order(make_runner(model, clock, seed=seed).run(phase, index, REQUEST, OTHERS))

    first = order(0, "train", 1)
    assert order(0, "train", 1) == first
    others = [order(1, "train", 1), order(0, "train", 2), order(0, "test", 1)]
    assert all(sorted(map(str, other)) == sorted(map(str, first)) for other in others)
    assert all(other != first for other in others)


def test_every_setting_can_come_first(runner):
    firsts = {runner.run("train", i, REQUEST, OTHERS[:3]).executions[0].setting for i in range(30)}
    assert firsts >= set(OTHERS[:3])


def test_the_anchor_runs_when_the_last_one_is_old_enough(runner, clock):
    def has_anchor(index):
        trial = runner.run("train", index, REQUEST, [FAST])
        return trial.anchor is not None

    assert has_anchor(0)  # there was none before
    clock.advance_ms(2_999)
    assert not has_anchor(1)
    clock.advance_ms(1)
    assert has_anchor(2)  # 3 s after the last one
    assert not has_anchor(3)


def test_the_anchor_enters_the_draws_only_if_it_was_drawn(runner, clock):
    undrawn = runner.run("train", 0, REQUEST, [FAST])
    assert undrawn.executions[undrawn.anchor].setting == FULL
    assert [undrawn.executions[i].setting for i in undrawn.draws] == [FAST]
    assert undrawn.anchor not in undrawn.draws
    clock.advance_ms(3_000)
    drawn = runner.run("train", 1, REQUEST, [FAST, FULL])
    assert len(drawn.executions) == 2
    assert drawn.anchor in drawn.draws


def test_full_that_was_drawn_counts_as_an_anchor(runner, clock):
    runner.run("train", 0, REQUEST, [FULL])
    clock.advance_ms(2_000)
    assert runner.run("train", 1, REQUEST, [FULL]).anchor == 0
    clock.advance_ms(2_000)
    assert runner.run("train", 2, REQUEST, [FAST]).anchor is None  # 2 s after the last one


def test_a_trial_says_where_it_belongs_and_is_handed_on(model, clock):
    kept = []
    runner = make_runner(model, clock, keep=kept.append)
    clock.advance_ms(1_500)
    budget = Budget(kind="mean", fraction=0.5)
    trial = runner.run("train", 7, REQUEST, [FAST], budget=budget, controller_ms=2.5)
    assert kept == [trial]
    assert (trial.phase, trial.index, trial.sample_id, trial.budget) == ("train", 7, "molmo-1", budget)
    assert trial.started_s == 1.5
    assert {execution.controller_ms for execution in trial.executions} == {2.5}
    assert {(e.kind, e.split, e.quality) for e in trial.executions} == {("count", "train", 1.0)}


def test_latencies_are_those_of_each_setting(model, clock, monkeypatch):
    delay(monkeypatch, clock, model.model.transformer["blocks"][1], 8, calls=(0,))
    runner = make_runner(model, clock)
    trial = runner.run("train", 0, REQUEST, [FAST])  # FAST leaves block 1 out, the anchor does not
    assert {e.setting: e.timing.llm_prefill_ms for e in trial.executions} == {FULL: 8, FAST: 0}


def fail_in(monkeypatch, model, block, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(model.model.transformer["blocks"][block], "forward", fail)


def test_a_failed_execution_has_its_reason_and_no_number(runner, model, monkeypatch):
    fail_in(monkeypatch, model, 1, torch.OutOfMemoryError("2 GiB asked for"))
    trial = runner.run("train", 0, REQUEST, [FAST, OTHERS[1]])  # only FAST does without block 1
    by_setting = {execution.setting: execution for execution in trial.executions}
    assert by_setting[FAST].timing is not None
    failed = by_setting[OTHERS[1]]
    assert failed.invalid == "OutOfMemoryError: 2 GiB asked for"
    assert (failed.timing, failed.quality, failed.request_ms, failed.output_ids) == (None, None, None, ())
    assert (failed.sample_id, failed.split, failed.kind) == ("molmo-1", "train", "count")
    with pytest.raises(MeasurementError, match=r"failed .OutOfMemoryError: 2 GiB asked for.; it has no prefill_ms"):
        failed.latency_ms("prefill_ms")


def test_a_failed_anchor_is_tried_again_in_the_next_trial(runner, model, monkeypatch):
    with monkeypatch.context() as broken:
        fail_in(broken, model, 1, RuntimeError("broken"))
        failed = runner.run("train", 0, REQUEST, [FAST])
        assert failed.executions[failed.anchor].invalid == "RuntimeError: broken"
    assert runner.run("train", 1, REQUEST, [FAST]).anchor is not None


@pytest.mark.parametrize("error", [ValueError("odd"), IndexError("far"), AssertionError("never"), TypeError("what")])
def test_whatever_the_model_raises_is_a_failure_of_one_execution(runner, model, monkeypatch, error):
    state = Snapshot(model)
    with monkeypatch.context() as broken:
        fail_in(broken, model, 1, error)
        trial = runner.run("train", 0, REQUEST, [FAST, OTHERS[1]])
    failed = next(execution for execution in trial.executions if execution.setting == OTHERS[1])
    assert failed.invalid == f"{type(error).__name__}: {error}"
    state.assert_equals(model)
    assert runner.run("train", 1, REQUEST, [OTHERS[1]]).executions[0].timing is not None  # the next one runs


def test_an_answer_without_a_token_is_a_failure_of_one_execution(runner, model, monkeypatch):
    with monkeypatch.context() as silent:
        silent.setattr(model, "generate", lambda **batch: batch["input_ids"])
        trial = runner.run("train", 0, REQUEST, [FULL])
    assert trial.executions[0].invalid.startswith("ExecutionError: generate() yielded no token")
    assert runner.run("train", 1, REQUEST, [FULL]).executions[0].timing is not None  # the next one runs


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), KnobError("no"), DataError("no")])
def test_what_ends_a_process_or_is_meant_for_a_person_rises(runner, model, monkeypatch, error):
    fail_in(monkeypatch, model, 0, error)
    with pytest.raises(type(error)):
        runner.run("train", 0, REQUEST, [FAST])


def test_a_generation_beyond_its_time_limit_has_failed(model, clock, monkeypatch):
    delay(monkeypatch, clock, model.model.transformer["blocks"][1], 1_200)
    runner = make_runner(model, clock, time_limit_s=1.0)
    trial = runner.run("train", 0, REQUEST, [FAST])  # FAST leaves block 1 out, the anchor does not
    by_setting = {execution.setting: execution for execution in trial.executions}
    assert by_setting[FAST].invalid is None
    assert by_setting[FULL].invalid.startswith("GenerationTimeout: ")
    assert by_setting[FULL].timing is None


def test_memory_is_freed_once_the_error_is_gone(runner, model, monkeypatch):
    freed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(sys.exc_info()[1]))
    fail_in(monkeypatch, model, 1, torch.OutOfMemoryError("2 GiB asked for"))
    runner.run("train", 0, REQUEST, [OTHERS[1]])
    assert freed == [None, None]  # full and OTHERS[1] use block 1; no error holds on to their tensors any more


def test_a_setting_that_runs_again_is_one_more_execution_of_the_trial(runner):
    trial = runner.run("test", 0, REQUEST, [FULL, FAST], again=[FULL])
    assert sorted(map(str, settings_in_order(trial))) == sorted(map(str, [FULL, FULL, FAST]))
    assert trial.executions[trial.anchor].setting == FULL
    assert [trial.executions[i].setting for i in trial.draws] == [FULL, FAST]


class Line:
    """A drift that says 1 more after each trial it has seen."""

    def __init__(self):
        self.seen = []

    def at(self, started_s):
        return Estimate(point=1.0 + len(self.seen), low=started_s, high=9.0)

    def add(self, trial):
        self.seen.append(trial)


def test_a_trial_records_the_drift_that_was_known_before_it(runner, clock):
    assert runner.run("train", 0, REQUEST, [FAST]).drift is None
    runner.drift = Line()
    clock.advance_ms(500)
    first, second = (runner.run("train", index, REQUEST, [FAST]) for index in (1, 2))
    assert (first.drift.point, second.drift.point) == (1.0, 2.0)
    assert first.drift.low == first.started_s == 0.5
    assert runner.drift.seen == [first, second]


def break_hooks(monkeypatch, model):
    tower = model.model.vision_backbone
    monkeypatch.setattr(tower, "_call_impl", tower.forward)


def test_in_a_measured_run_unseen_stages_are_a_failure(runner, model, monkeypatch):
    break_hooks(monkeypatch, model)
    trial = runner.run("train", 0, REQUEST, [FAST])
    assert {execution.invalid for execution in trial.executions} == {"not seen: vision"}


def test_in_a_run_of_totals_every_execution_has_only_its_total(model, clock, monkeypatch):
    delay(monkeypatch, clock, model.model.transformer["blocks"][0], 8, calls=(0,))
    runner = make_runner(model, clock, source="total_only")
    seen = runner.run("train", 0, REQUEST, [FULL]).executions[0]
    break_hooks(monkeypatch, model)
    unseen = runner.run("train", 1, REQUEST, [FULL]).executions[0]
    assert (seen.timing.source, unseen.timing.source) == ("total_only", "total_only")
    assert (seen.latency_ms("total_ms"), unseen.latency_ms("total_ms")) == (8, 0)
    assert seen.timing.prefill_ms is None
    with pytest.raises(MeasurementError, match="this run's source is total_only, use latency_metric = 'total_ms'"):
        seen.latency_ms("prefill_ms")


def test_the_start_up_check_decides_the_source_of_the_run(model, clock, monkeypatch):
    def probe():
        return make_runner(model, clock, source="total_only").run("warmup", 0, REQUEST, [FULL]).executions[0]

    break_hooks(monkeypatch, model)
    assert check_source(probe(), "total") == "total_only"
    with pytest.raises(
        MeasurementError, match=r"cannot be seen \(not seen: vision\) and measure.on_unmeasured = 'stop'"
    ):
        check_source(probe(), "stop")


def test_a_model_set_to_assisted_decoding_is_refused(model, clock):
    model.generation_config.prompt_lookup_num_tokens = 3
    with pytest.raises(MeasurementError, match=r"asks for assisted_generation.*set num_beams = 1 and no assistant"):
        make_runner(model, clock)


def test_samples_are_loaded_through_the_processor(bundled, demo_sample, clock):
    runner = TrialRunner(
        model=bundled.model,
        processor=bundled.processor,
        quality=exact,
        full=Setting(moe_topk=4),
        max_new_tokens=1,
        clock=clock,
        seed=0,
        keep=lambda _: None,
        anchor_every_s=3.0,
    )
    trial = runner.run("train", 0, runner.request(demo_sample), [Setting(moe_topk=1)])
    assert trial.sample_id == demo_sample.id
    assert all(execution.quality is not None for execution in trial.executions)
    assert runner.request(REQUEST) is REQUEST
