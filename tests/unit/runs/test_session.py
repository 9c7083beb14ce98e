"""A session: what it records of its phases, also when it is interrupted, and what it goes on with."""

import dataclasses
from math import inf

import pytest
import torch

from chronostat.config import load_config
from chronostat.data.demo import DemoSizesTask
from chronostat.errors import ConfigError, DataError, KnobError, MeasurementError, UnlikeConditions
from chronostat.records import Setting
from chronostat.runs.phases import CallCounter
from chronostat.runs.store import RunStore
from chronostat.runs.workload import Workload, load_data
from stand_ins.molmo_like import molmo_like
from stand_ins.observing import delay
from stand_ins.runs import StandIn, fail_under, interrupt_after


def executions(store: RunStore, phase: str) -> int:
    return sum(len(trial.executions) for trial in store.trials(phase))


class Spy:
    """Notes what a session says of its progress."""

    def __init__(self):
        self.said = []

    def begin(self, phase, seconds):
        self.said.append(("begin", phase))

    def advance(self, fraction, note):
        self.said.append(("advance", fraction))

    def warn(self, text):
        self.said.append(("warn", text))

    def end(self, note):
        self.said.append(("end", note))


def run_train(session, trials, start=0):
    """Some trials of the training phase, without any learning."""
    samples = session.samples("train")
    with session.phase("train", 60):
        for index in range(start, start + trials):
            session.runner.run("train", index, session.runner.request(samples[index]), session.space.settings[:2])


def test_the_check_and_the_warm_up_are_counted_and_stored(stand_in):
    with stand_in.session() as session:
        # full twice, then each of the 6 settings
        assert session.counter.calls == executions(session.store, "warmup") == 2 + 6
        assert (session.source, session.metric) == ("measured", "prefill_ms")
    metadata = stand_in.store().metadata
    # 38 ms twice; 171 ms for all settings: .2 s
    assert metadata["phases"] == {"warmup": {"seconds": 0.2, "generate_calls": 8}}
    assert (metadata["source"], metadata["metric"], metadata["command"]) == (
        "measured",
        "prefill_ms",
        "chronostat train",
    )
    assert metadata["model"]["name"] == "molmo-like"
    assert metadata["space"] == {"moe_topk": [2, 1], "block_skip": [[], [1], [1, 2]]}
    assert set(metadata["absent"]) == {"vision_tokens", "image_keep", "drop_after"}


def test_a_phase_counts_its_calls_and_its_time(stand_in):
    with stand_in.session() as session:
        run_train(session, 3)
        assert executions(session.store, "train") == 6
    # (38 + 34) ms in each trial: full and one expert
    assert stand_in.store().metadata["phases"]["train"] == {"seconds": 0.2, "generate_calls": 6}


def test_what_processes_one_after_the_other_called_is_added_up(stand_in):
    with stand_in.session() as session:
        run_train(session, 2)
    with stand_in.reopened() as session:
        run_train(session, 3, start=2)
    store = stand_in.store()
    phases = store.metadata["phases"]
    assert phases["train"]["generate_calls"] == executions(store, "train") == 10
    assert phases["warmup"]["generate_calls"] == executions(store, "warmup") == 16
    assert [trial.index for trial in store.trials("train")] == [0, 1, 2, 3, 4]


def test_an_interrupted_phase_says_what_it_did(stand_in, monkeypatch):
    with stand_in.session() as session, monkeypatch.context() as pressed:
        interrupt_after(pressed, stand_in.model, 5)
        with pytest.raises(KeyboardInterrupt):
            run_train(session, 6)
    store = stand_in.store()
    # two trials of two; in the third one call ended and one did not: that trial is not stored
    assert executions(store, "train") == 4
    assert store.metadata["phases"]["train"] == {"seconds": 0.2, "generate_calls": 4, "unfinished_calls": 2}
    with stand_in.reopened() as session:
        run_train(session, 1, start=2)
    assert store.metadata["phases"]["train"] == {"seconds": 0.3, "generate_calls": 6, "unfinished_calls": 2}
    assert executions(store, "train") == 6


def test_a_phase_in_which_a_process_was_killed_claims_no_count(stand_in):
    with stand_in.session() as session:
        run_train(session, 2)
    store = stand_in.store()
    with store:  # as kill -9 leaves it: trials, and not a word about them
        store.update_metadata(phases={"warmup": store.metadata["phases"]["warmup"]})
    with stand_in.reopened() as session:
        run_train(session, 1, start=2)
    assert set(stand_in.store().metadata["phases"]["train"]) == {"seconds"}
    with stand_in.reopened() as session:
        run_train(session, 1, start=3)
    assert set(stand_in.store().metadata["phases"]["train"]) == {"seconds"}


def test_while_a_phase_goes_on_nothing_is_claimed(stand_in):
    with stand_in.session() as session:
        run_train(session, 2)
    with stand_in.reopened() as session, session.phase("train", 60):
        assert "generate_calls" not in stand_in.store().metadata["phases"]["train"]


def test_what_is_left_of_the_box_of_the_whole_run(stand_in):
    with stand_in.session("seconds=60") as session:
        # the warm-up took 2 * 38 ms and 171 ms
        assert session.time_left_s() == pytest.approx(60 - 0.247)
        stand_in.clock.advance_ms(65_000)
        assert session.time_left_s() == pytest.approx(-5 - 0.247)
    with stand_in.session(name="without") as session:
        assert session.time_left_s() == inf


def test_samples_are_looked_at_evenly_from_both_splits_and_not_executed(stand_in):
    with stand_in.session("train.unseen=5") as session:
        calls = session.counter.calls
        seen = session.unseen()
        assert session.counter.calls == calls
        train, validation = session.samples("train"), session.samples("validation")
        mixed = [train[0], validation[0], train[1], validation[1], train[2]]
        expected = [session.observe(each) for each in mixed]
    assert [each.prompt.tolist() for each in seen] == [each.prompt.tolist() for each in expected]
    assert [each.tokens.tolist() for each in seen] == [each.tokens.tolist() for each in expected]


def test_the_time_limit_of_a_generation_follows_from_the_machine(stand_in, monkeypatch):
    with stand_in.session() as session:
        assert session.runner.time_limit_s == 10  # 30 times 38 ms are less
    with stand_in.session("measure.time_limit_s=3", name="given") as session:
        assert session.runner.time_limit_s == 3
    delay(monkeypatch, stand_in.clock, stand_in.model.model.vision_backbone, 1_000)
    with stand_in.session(name="slow") as session:
        assert session.runner.time_limit_s == pytest.approx(30 * 1.038)


def test_progress_ends_whatever_happens(stand_in, monkeypatch):
    spy = Spy()
    with stand_in.session(progress=spy) as session, monkeypatch.context() as pressed:
        interrupt_after(pressed, stand_in.model, 1)
        with pytest.raises(KeyboardInterrupt):
            run_train(session, 2)
    assert spy.said[0] == ("begin", "warmup")
    assert spy.said[-2:] == [("begin", "train"), ("end", "2 executions in 0 s")]


def test_failed_executions_are_stored_with_their_reason_and_counted(stand_in, monkeypatch):
    with stand_in.session() as session:
        fail_under(monkeypatch, session, session.space.settings[1])
        run_train(session, 2)
    store = stand_in.store()
    invalid = [e for trial in store.trials("train") for e in trial.executions if e.invalid]
    assert [e.invalid for e in invalid] == ["RuntimeError: out of memory"] * 2
    assert store.metadata["phases"]["train"]["generate_calls"] == 4


def test_the_counter_leaves_the_model_as_it_was():
    model = molmo_like()
    with CallCounter().watching(model):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)

    def compiled(**batch):
        return type(model).generate(model, **batch)

    model.generate = compiled
    with CallCounter().watching(model):
        assert model.generate is not compiled
    assert model.generate is compiled


def break_hooks(monkeypatch, model):
    vision = model.model.vision_backbone
    monkeypatch.setattr(vision, "_call_impl", lambda *args: vision.forward(*args))


def test_stages_that_cannot_be_seen_switch_the_whole_run_to_totals(stand_in, monkeypatch):
    break_hooks(monkeypatch, stand_in.model)
    with stand_in.session("measure.latency_metric=llm_prefill_ms") as session:
        assert (session.source, session.metric) == ("total_only", "total_ms")
        run_train(session, 2)
    store = stand_in.store()
    assert (store.metadata["source"], store.metadata["metric"]) == ("total_only", "total_ms")
    timings = [e.timing for trial in store.trials() for e in trial.executions]
    assert {timing.source for timing in timings} == {"total_only"}
    assert {timing.prefill_ms for timing in timings} == {None}


def test_one_doubtful_call_does_not_decide_how_the_run_is_measured(stand_in, monkeypatch):
    calls, vision = [], stand_in.model.model.vision_backbone
    call_impl = vision._call_impl

    def unseen_the_second_time(*given):
        calls.append(given)
        return vision.forward(*given) if len(calls) == 2 else call_impl(*given)

    monkeypatch.setattr(vision, "_call_impl", unseen_the_second_time)
    with stand_in.session() as session:
        assert session.source == "measured"
    doubtful = [e for trial in stand_in.store().trials("warmup") for e in trial.executions if e.invalid]
    assert len(doubtful) == 1


def test_the_check_itself_has_the_source_of_the_run(stand_in, monkeypatch):
    """Its first call is seen, its second one is not: both are totals then, as all that follow."""
    calls, vision = [], stand_in.model.model.vision_backbone
    call_impl = vision._call_impl

    def unseen_from_the_second_on(*given):
        calls.append(given)
        return call_impl(*given) if len(calls) == 1 else vision.forward(*given)

    monkeypatch.setattr(vision, "_call_impl", unseen_from_the_second_on)
    with stand_in.session() as session:
        assert session.source == "total_only"
    timings = [e.timing for trial in stand_in.store().trials("warmup") for e in trial.executions]
    assert {timing.source for timing in timings} == {"total_only"}
    assert {timing.prefill_ms for timing in timings} == {None}
    assert executions(stand_in.store(), "warmup") == 10  # four looks, and six settings


def test_or_they_end_the_run_before_anything_is_learned(stand_in, monkeypatch):
    break_hooks(monkeypatch, stand_in.model)
    with (
        pytest.raises(MeasurementError, match=r"cannot be seen \(not seen: vision\) and"),
        stand_in.session("measure.on_unmeasured=stop"),
    ):
        pytest.fail("the session began")
    assert executions(stand_in.store(), "warmup") == 4  # what it looked at is there to be read
    assert stand_in.store().metadata["phases"]["warmup"]["generate_calls"] == 4


def test_a_run_keeps_its_source(stand_in, monkeypatch):
    with stand_in.session():
        pass
    break_hooks(monkeypatch, stand_in.model)
    with (
        pytest.raises(UnlikeConditions, match="the run's latencies are measured, now total_only; begin a new run"),
        stand_in.reopened(),
    ):
        pytest.fail("the session began")
    sources = {e.timing and e.timing.source for trial in stand_in.store().trials() for e in trial.executions}
    assert sources == {"measured", None}  # so the run can still be reported, and judged another time


def test_what_was_looked_at_before_a_source_was_known_has_none(stand_in, monkeypatch):
    with monkeypatch.context() as pressed:
        break_hooks(pressed, stand_in.model)
        with pytest.raises(MeasurementError, match="cannot be seen"), stand_in.session("measure.on_unmeasured=stop"):
            pytest.fail("the session began")
    looks = [e for trial in stand_in.store().trials() for e in trial.executions]
    assert [(e.timing, e.invalid) for e in looks] == [(None, "not seen: vision")] * 4
    with stand_in.reopened("measure.on_unmeasured=stop"):
        pass
    timings = [e.timing for trial in stand_in.store().trials() for e in trial.executions if e.timing]
    assert {timing.source for timing in timings} == {"measured"}


def test_a_run_that_was_killed_before_its_source_was_known_can_go_on(stand_in, monkeypatch):
    with monkeypatch.context() as pressed:
        interrupt_after(pressed, stand_in.model, 1)
        with pytest.raises(KeyboardInterrupt), stand_in.session():
            pytest.fail("the session began")
    assert "source" not in stand_in.store().metadata
    with stand_in.reopened():
        pass
    assert stand_in.store().metadata["source"] == "measured"


def test_a_run_that_lost_its_conditions_is_not_compared(stand_in):
    with stand_in.session():
        pass
    store = stand_in.store()
    store.write_json("run.json", {key: value for key, value in store.metadata.items() if key != "conditions"})
    store.close()
    with pytest.raises(UnlikeConditions, match="the conditions are incomplete"), stand_in.reopened():
        pytest.fail("the session began")


def test_another_model_does_not_go_on_with_a_run(stand_in):
    with stand_in.session():
        pass
    stand_in.model.lm_head.weight.data += 1
    with (
        pytest.raises(UnlikeConditions, match=r"belongs to model 2-[-0-9a-f]{38}, but .*: its weights differ;"),
        stand_in.reopened(),
    ):
        pytest.fail("the session began")


def test_other_conditions_do_not_go_on_with_a_run(stand_in):
    with stand_in.session() as session:
        conditions = dataclasses.asdict(session.conditions)
    with stand_in.store() as store:
        store.update_metadata(conditions=conditions | {"threads": 7, "cpu": "another"})
    with pytest.raises(UnlikeConditions, match=r"cpu: another != .*; threads: 7 != 1$"), stand_in.reopened():
        pytest.fail("the session began")


def test_every_execution_carries_the_fingerprint_of_its_conditions(stand_in):
    with stand_in.session() as session:
        fingerprint = session.conditions.fingerprint
        assert session.store.metadata["conditions_by_fingerprint"] == {
            fingerprint: dataclasses.asdict(session.conditions)
        }
        trials = session.store.trials()
        assert {execution.conditions for trial in trials for execution in trial.executions} == {fingerprint}


def test_a_run_goes_on_after_an_upgrade_and_says_which_executions_are_of_which_commit(stand_in):
    with stand_in.session() as session:
        conditions = dataclasses.asdict(session.conditions)
    with stand_in.store() as store:
        store.update_metadata(conditions=conditions | {"commit": "an older one"})
    with stand_in.reopened() as session:
        assert list(session.store.metadata["conditions_by_fingerprint"].values()) == [conditions]


def test_threads_that_change_inside_a_session_end_it_at_the_next_phase(stand_in):
    with stand_in.session() as session:
        torch.set_num_threads(2)
        with pytest.raises(UnlikeConditions, match=r"threads: 1 != 2$"):
            session.phase("train", 1.0)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_data_without_what_training_or_judging_needs_is_refused_at_once(tmp_path, monkeypatch, split):
    stand_in = StandIn(tmp_path, monkeypatch, {split: 0})
    with pytest.raises(DataError, match=f"no batches of split {split}"):
        stand_in.session()
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_a_knob_does_not_have_is_refused_at_once(stand_in):
    with pytest.raises(KnobError, match="moe_topk = 3"):
        stand_in.session("knobs.moe_topk=[3]")


def test_an_own_model_needs_own_data():
    with pytest.raises(ConfigError, match=r"model.path = 'there' without data.path: the bundled task is made for"):
        load_data(load_config(None, ["model.path=there"]))


def test_a_bundled_task_is_taken_by_name_and_not_beside_own_data():
    assert isinstance(load_data(load_config(None, ["data.task=demo_sizes"])), DemoSizesTask)
    with pytest.raises(
        ConfigError, match=r"data\.path = 'a\.jsonl' beside data\.task or data\.files; name one source of samples"
    ):
        load_data(load_config(None, ["data.task=demo_sizes", "data.path=a.jsonl"]))


def test_ready_batches_need_no_processor(stand_in):
    with stand_in.session() as session:
        trial_input = session.samples("test")[0]
        assert session.runner.request(trial_input) is trial_input
        observation = session.observer(trial_input)
        assert observation.prompt.shape == (session.observer.width,)
        assert observation.tokens.shape == (len(session.space), 2)
        assert session.clock is stand_in.clock
        assert session.space.full == Setting(moe_topk=2, block_skip=())
    assert isinstance(session.workload, Workload)
