"""The estimator of a run: what it learns, what it refuses, and that a measured run never comes near it."""

import json
from dataclasses import replace

import numpy as np
import pytest

import chronostat.execution.trials
from chronostat.config import load_config
from chronostat.errors import ConfigError, MeasurementError, StoreError, UnlikeConditions
from chronostat.execution.conditions import read_conditions
from chronostat.machine.stabilise import flushes_denormals
from chronostat.records import Execution, Setting, StageTiming
from chronostat.runs.estimator import LEAST_EXECUTIONS, Estimator, estimator_from, stored_executions
from chronostat.runs.training import train
from chronostat.runs.workload import Workload
from chronostat.studies.estimator.evaluation import Known, errors, ordered_pairs
from chronostat.studies.estimator.remeasure import evaluate
from chronostat.validation import validate
from stand_ins.molmo_like import molmo_like
from unit.runs.test_session import break_hooks

LONG = ("train.calibration_executions=60", "train.select_executions=0", "train.executions=8")  # enough to learn from
BRIEF = ("train.select_executions=0", "train.executions=1")


def execution(tokens: int, topk: int, prefill_ms: float, *, new_tokens: int = 3, source="measured") -> Execution:
    """Of a request whose decode steps take 2 ms each, with 1 ms before the prefill and 0.5 ms after the last token."""
    steps = new_tokens - 1
    timing = StageTiming(
        source=source,
        total_ms=1 + prefill_ms + 2 * steps + 0.5,
        new_tokens=new_tokens,
        decode_steps=steps,
        ttft_ms=1 + prefill_ms,
        prefill_ms=prefill_ms,
        llm_prefill_ms=prefill_ms / 2,
        decode_ms=2.0 * steps,
        decode_ms_per_token=2.0,
    )
    setting = Setting(vision_tokens=tokens, moe_topk=topk, block_skip=(2, 3) if topk == 1 else ())
    return Execution(
        sample_id="s", split="train", setting=setting, timing=timing, prompt_tokens=tokens + 20, image_tokens=tokens
    )


def measured_executions() -> list[Execution]:
    """Prefill takes 0.1 ms for each image token and expert."""
    return [
        execution(tokens, topk, 0.1 * tokens * topk)
        for tokens in (40, 80, 160)
        for topk in (1, 2, 4)
        for _ in range(10)
    ]


def test_it_says_what_was_measured_under_the_same_setting():
    timing = Estimator(measured_executions()).timing(execution(80, 2, prefill_ms=999.0, new_tokens=6))
    # 0.1 * 80 * 2; ttft 1 ms later; 5 steps of 2 ms; 0.5 ms after the last token
    assert timing.source == "estimated"
    assert timing.prefill_ms == pytest.approx(16, rel=0.02)
    assert timing.llm_prefill_ms == pytest.approx(8, rel=0.02)
    assert timing.ttft_ms == pytest.approx(17, rel=0.02)
    assert (timing.new_tokens, timing.decode_steps) == (6, 5)
    assert timing.decode_ms_per_token == pytest.approx(2)
    assert timing.decode_ms == pytest.approx(10)
    assert timing.total_ms == pytest.approx(timing.ttft_ms + 10 + 0.5)
    assert timing.vision_ms is None


def test_one_token_has_no_decode_step_to_estimate():
    timing = Estimator(measured_executions()).timing(execution(80, 2, 16.0, new_tokens=1))
    assert (timing.decode_ms, timing.decode_ms_per_token) == (None, None)
    assert timing.total_ms == pytest.approx(timing.ttft_ms + 0.5)


def test_a_spike_counts_once():
    spiked = [*measured_executions(), execution(80, 2, 16_000.0)]
    timing = Estimator(spiked).timing(execution(80, 2, 16.0))
    assert timing.prefill_ms == pytest.approx(16, rel=0.05)


def test_failed_and_unseen_executions_teach_nothing():
    failed = replace(execution(80, 2, 1.0), timing=None, invalid="RuntimeError: out of memory")
    unseen = execution(80, 2, 1.0, source="total_only")
    few = measured_executions()[: LEAST_EXECUTIONS - 1]
    with pytest.raises(StoreError, match=f"at least {LEAST_EXECUTIONS} measured executions, there are 49"):
        Estimator([*few, *[failed] * 50, *[unseen] * 50])


def test_errors_by_hand():
    # request 0: 10, 20 and 21 ms; request 1: 10, 20 and 40 ms. 20 and 21 are 5 % apart.
    reference = Known(
        prefill_ms=np.array([[10.0, 20, 21], [10, 20, 40]]), decode_ms_per_token=np.array([[2.0, 2, 2], [2, 2, np.nan]])
    )
    known = Known(
        prefill_ms=np.array([[11.0, 22, 21], [10, 9, 40]]), decode_ms_per_token=np.array([[2.2, 2.2, 2], [2, 2.2, 3]])
    )
    assert ordered_pairs(reference) == [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 1), (1, 0, 2), (1, 1, 2)]
    found = errors(known, reference, budgets_ms=[15.0])
    assert found.prefill_error == pytest.approx(0.05)  # of 0.1, 0.1, 0, 0, 0.55, 0
    assert found.prefill_bias == 0
    assert found.decode_error == pytest.approx(0.1)  # of 0.1, 0.1, 0, 0, 0.1
    assert found.wrong_order == pytest.approx(2 / 6)  # 22 > 21 and 10 > 9
    assert found.wrong_budget == pytest.approx(1 / 6)  # 9 ms for a request that takes 20


def test_without_decode_steps_there_is_no_decode_error():
    nothing = np.full((1, 2), np.nan)
    reference = Known(prefill_ms=np.array([[10.0, 20]]), decode_ms_per_token=nothing)
    assert errors(reference, reference, [15.0]).decode_error is None


def a_measured_run(stand_in) -> str:
    with stand_in.session(*LONG, name="earlier") as session:
        train(session)
    return f"measure.estimate_from={stand_in.folder / 'earlier'}"


@pytest.mark.slow
def test_a_run_that_cannot_be_measured_is_estimated_as_a_whole(stand_in, monkeypatch):
    learned_from = a_measured_run(stand_in)
    break_hooks(monkeypatch, stand_in.model)
    with stand_in.session(*BRIEF, "measure.on_unmeasured=estimate", learned_from) as session:
        assert (session.source, session.metric) == ("estimated", "prefill_ms")
        train(session)
    store = stand_in.store()
    assert (store.metadata["source"], store.metadata["metric"]) == ("estimated", "prefill_ms")
    assert {e.timing.source for trial in store.trials() for e in trial.executions} == {"estimated"}
    # of a full request: 6 ms of vision and 4 blocks of 3 + 2 * 0.5 ms
    full = [e.timing for t in store.trials("calibrate") for e in t.executions if e.setting == session.space.full]
    assert full[0].prefill_ms == pytest.approx(22, rel=0.02)


@pytest.mark.slow
def test_estimates_have_no_noise_floor_and_nothing_disturbs_them(stand_in, monkeypatch):
    learned_from = a_measured_run(stand_in)
    break_hooks(monkeypatch, stand_in.model)
    with stand_in.session(*BRIEF, "measure.on_unmeasured=estimate", learned_from) as session:
        controller = train(session)
        real = chronostat.execution.trials.execute

        def execute(*given, **options):
            return replace(real(*given, **options), disturbed="stolen CPU time 20 ms")

        monkeypatch.setattr(chronostat.execution.trials, "execute", execute)
        verdict = validate(session, controller)
    assert (verdict.source, verdict.noise) == ("estimated", None)
    assert {compared.latency.pairs for compared in verdict.comparisons} == {6}
    for trial in stand_in.store().trials("test"):
        assert len({e.setting for e in trial.executions}) == len(trial.executions)  # full does not run twice


@pytest.mark.slow
def test_an_evaluation_measures_as_its_run_did(stand_in, monkeypatch):
    overrides = (*LONG, "measure.flush_denormals=true")
    with stand_in.session(*overrides, name="earlier") as session:
        train(session)
        held_out = session.runner.request(session.samples("test")[0])
        session.runner.run("test", 0, held_out, session.space.settings)  # nothing may be learned from it
    workload = stand_in.workload(*overrides)
    monkeypatch.setattr(Workload, "load", lambda _: workload)
    evaluation = evaluate(stand_in.store("earlier"), workload.config, seconds=60)
    assert evaluation.requests == 6
    earlier = [trial for phase in ("calibrate", "train") for trial in stand_in.store("earlier").trials(phase)]
    assert evaluation.learned_from == sum(len(trial.executions) for trial in earlier)
    assert evaluation.conditions.flush_denormals is True
    assert not flushes_denormals()  # and it is put back


@pytest.mark.slow
def test_an_evaluation_is_as_long_as_it_is_asked_to_be_but_measures_five_requests_in_any_time(stand_in, monkeypatch):
    with stand_in.session(*LONG, name="earlier") as session:
        train(session)
    workload, store = stand_in.workload(*LONG), stand_in.store("earlier")
    monkeypatch.setattr(Workload, "load", lambda _: workload)
    assert evaluate(store, workload.config, seconds=0.001).requests == 5  # of 6
    assert evaluate(store, workload.config, seconds=1e6, requests=5).requests == 5
    with pytest.raises(ConfigError, match="requests = 4: an evaluation needs at least 5"):
        evaluate(store, workload.config, seconds=1e6, requests=4)
    monkeypatch.setattr(stand_in.model, "generate", fails)
    with pytest.raises(MeasurementError, match="only 0 of 5 held-out requests could be measured twice under every"):
        evaluate(store, workload.config, seconds=1e6, requests=5)


def fails(**_):
    raise RuntimeError("out of memory")


@pytest.mark.slow
def test_a_measured_run_never_comes_near_the_estimator(stand_in, monkeypatch):
    learned_from = a_measured_run(stand_in)

    def called(*_):
        pytest.fail("a measured run called the estimator")

    monkeypatch.setattr(Estimator, "__init__", called)
    monkeypatch.setattr(Estimator, "timings", called)
    with stand_in.session(*BRIEF, "measure.on_unmeasured=estimate", learned_from) as session:
        assert session.source == "measured"
        train(session)
    timings = [e.timing for trial in stand_in.store().trials() for e in trial.executions]
    assert {timing.source for timing in timings} == {"measured"}


@pytest.mark.slow
def test_it_learns_from_measurements_of_this_model_under_these_conditions_only(stand_in):
    a_measured_run(stand_in)
    run, workload = stand_in.folder / "earlier", stand_in.workload()
    mine = {"model": workload.vlm.model, "conditions": read_conditions(workload.vlm.model)}
    estimator_from(run, **mine)
    with pytest.raises(
        UnlikeConditions, match=r"measured on model .*, this is another: .* differ; name a run of this model"
    ):
        estimator_from(run, **{**mine, "model": molmo_like(blocks=3)})
    with pytest.raises(UnlikeConditions, match="threads: "):
        estimator_from(run, **{**mine, "conditions": replace(mine["conditions"], threads=64)})
    metadata = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**metadata, "source": "estimated"}))
    with pytest.raises(UnlikeConditions, match="are estimated; an estimator learns from measured ones only"):
        estimator_from(run, **mine)


def test_cold_executions_teach_nothing(stand_in):
    with stand_in.session():
        pass
    store = stand_in.store()
    assert {trial.phase for trial in store.trials()} == {"warmup"}
    assert stored_executions(store) == []


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["measure.on_unmeasured=estimate"], "are given together or not at all"),
        (["measure.estimate_from=runs/demo"], "are given together or not at all"),
        (
            ["measure.on_unmeasured=estimate", "measure.estimate_from=x", "measure.latency_metric=request_ms"],
            "cannot be added to estimates",
        ),
    ],
)
def test_the_configuration_says_what_goes_together(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        load_config(None, overrides)
