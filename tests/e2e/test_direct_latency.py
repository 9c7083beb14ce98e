"""The older description of such a system, walked step by step on a model with its module names and its batch keys.

``vision_backbone``, ``transformer.blocks``; ``input_ids``, ``images``, ``image_masks``, ``image_input_idx``. One
execution answers and is measured; one training step executes each setting and is rewarded by exactly what it measured;
validation measures again; if the hooks do not fire the whole run says so. docs/definitions.md maps the older names.
"""

import gc
import weakref

import numpy as np
import pytest
import torch

from chronostat.control.controller import load_controller
from chronostat.control.controller_files import FOLDER
from chronostat.control.failures import Failures
from chronostat.control.learners import learner_by_name
from chronostat.control.observer import Observer
from chronostat.control.reward import overshoot
from chronostat.control.trainer import Trainer
from chronostat.errors import MeasurementError
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.execution.execute import execute
from chronostat.execution.trials import TrialRunner
from chronostat.measure.generate import measure_generate
from chronostat.records import Budget, Setting
from chronostat.runs.training import train
from chronostat.validation import validate
from stand_ins.molmo_like import PROMPT_TOKENS, MolmoLike, molmo_batch
from stand_ins.observing import delay, hook_counts
from stand_ins.runs import NEW_TOKENS, StandIn, llm_prefill_ms, prefill_ms

FULL_MS = 22.0
BUDGETS = (Budget(kind="mean", fraction=0.6), Budget(kind="deadline", fraction=0.65))


@pytest.fixture
def calls(monkeypatch):
    """Every call of the model class's own ``generate()``, whoever makes it."""
    made = []
    generate = MolmoLike.generate

    def watched(self, **batch):
        made.append(sorted(batch))
        return generate(self, **batch)

    monkeypatch.setattr(MolmoLike, "generate", watched)
    return made


def test_one_execution_answers_and_is_measured(stand_in, calls):
    plain = stand_in.model.generate(**molmo_batch(), max_new_tokens=NEW_TOKENS)
    measured = measure_generate(stand_in.model, molmo_batch(), max_new_tokens=NEW_TOKENS, clock=stand_in.clock)
    assert torch.equal(measured.sequences, plain)
    assert measured.output_ids == tuple(plain[0, PROMPT_TOKENS:].tolist())
    timing = measured.timing
    # 4 blocks of 3 ms with 2 experts of .5 ms: block 0 counts
    assert (timing.source, timing.vision_ms, timing.llm_prefill_ms, timing.prefill_ms) == ("measured", 6, 16, 22)
    # one decode step for two tokens: 16 ms / 1, not / 2
    assert (timing.decode_steps, timing.decode_ms, timing.decode_ms_per_token) == (1, 16, 16)
    assert timing.total_ms == 38
    assert len(calls) == 2
    assert {"image_input_idx", "image_masks", "images", "input_ids"} <= set(calls[1])


def test_a_setting_is_applied_to_the_execution_that_is_measured(stand_in):
    request = stand_in.batches.split("train")[0]
    setting = Setting(moe_topk=1, block_skip=(1, 2))
    execution = execute(stand_in.model, request, setting=setting, max_new_tokens=NEW_TOKENS, clock=stand_in.clock)
    # 2 blocks of 3 ms with 1 expert of .5 ms
    assert execution.timing.llm_prefill_ms == llm_prefill_ms(setting) == 7
    assert execution.timing.prefill_ms == prefill_ms(setting) == 13
    assert execution.quality in {0.0, 1.0}


def make_trainer(stand_in, kept, metric="prefill_ms", full_ms=FULL_MS):
    config = stand_in.config("reward.mean=overshoot", "train.learner=rloo")
    space = stand_in.workload().space
    runner = TrialRunner(
        model=stand_in.model,
        processor=None,
        quality=None,
        full=space.full,
        max_new_tokens=NEW_TOKENS,
        clock=stand_in.clock,
        seed=0,
        keep=kept.append,
        anchor_every_s=1000,
    )
    observer = Observer(stand_in.model, None, space)
    seen = [observer(request) for request in stand_in.batches.split("train")]
    evidence, each = Evidence(space, seen, seed=0), np.arange(len(space))
    alike = np.full(len(space), 0.5)  # as if nothing were known of the settings: each is as likely as the others
    evidence.add(seen[0], Answers(settings=each, quality=alike, latency=alike))
    evidence.fit()
    trainer = Trainer(
        runner=runner,
        space=space,
        observer=observer,
        evidence=evidence,
        metric=metric,
        full_ms=full_ms,
        failures=Failures(space),
        group_size=4,
        seed=0,
        keep=kept.append,
    )
    trainer.begin(learner_by_name("rloo")(space, evidence, config, BUDGETS, 0), BUDGETS)
    return trainer


def watch_rewards(monkeypatch, trainer):
    """The rewards of the step that comes, as the learner computes them: [budget, draw]."""
    seen = []
    compute = trainer.learner._rewards

    def watched(outcome):
        rewards = compute(outcome)
        seen.append(rewards)
        return rewards

    monkeypatch.setattr(trainer.learner, "_rewards", watched)
    return seen


def rewards_of(trial, trainer, latency_ms, full_ms=FULL_MS):
    """What the step should be paid: from the answers and the latencies of its own executions, nothing else."""
    drawn = [trial.executions[i] for i in trial.draws]
    quality = torch.tensor([execution.quality for execution in drawn])
    latency = torch.tensor([latency_ms(execution) / full_ms for execution in drawn])
    limits = torch.tensor([[budget.fraction] for budget in BUDGETS])
    config = trainer.learner._reward
    return overshoot(quality, latency, limits, torch.zeros(1), config)


def test_a_training_step_executes_each_setting_once(stand_in, calls):
    kept = []
    trainer = make_trainer(stand_in, kept)
    before = len(calls)
    trainer.step(stand_in.batches.split("train")[0])
    trial, step = kept
    settings = [execution.setting for execution in trial.executions]
    assert len(settings) == len(set(settings)) == len(calls) - before
    assert {trial.executions[i].setting for i in trial.draws} <= set(settings)
    assert len(trial.draws) == 4
    assert step.executed_ms == sum(execution.timing.total_ms for execution in trial.executions)
    for execution in trial.executions:
        assert execution.timing.prefill_ms == prefill_ms(execution.setting)


@pytest.mark.parametrize(
    ("metric", "full_ms"), [("prefill_ms", 22.0), ("llm_prefill_ms", 16.0), ("ttft_ms", 22.0), ("total_ms", 38.0)]
)
def test_the_reward_uses_exactly_the_recorded_latency(stand_in, monkeypatch, metric, full_ms):
    kept = []
    trainer = make_trainer(stand_in, kept, metric, full_ms)
    paid = watch_rewards(monkeypatch, trainer)
    trainer.step(stand_in.batches.split("train")[0])
    expected = rewards_of(kept[0], trainer, lambda execution: getattr(execution.timing, metric), full_ms)
    assert torch.allclose(paid[0], expected, atol=1e-6)
    assert len({round(float(reward), 4) for reward in paid[0].flatten()}) > 2  # latency tells them apart


def test_altering_the_clock_alters_the_reward(stand_in, monkeypatch):
    kept, slow_kept = [], []
    trainer = make_trainer(stand_in, kept)
    paid = watch_rewards(monkeypatch, trainer)
    trainer.step(stand_in.batches.split("train")[0])
    # nothing but time differs: block 0, which no setting skips, takes 4 ms longer
    delay(monkeypatch, stand_in.clock, stand_in.model.model.transformer["blocks"][0], 4)
    slow = make_trainer(stand_in, slow_kept)
    slow_paid = watch_rewards(monkeypatch, slow)
    slow.step(stand_in.batches.split("train")[0])

    ordinary, slower = kept[0], slow_kept[0]
    assert [e.setting for e in slower.executions] == [e.setting for e in ordinary.executions]
    assert [e.output_ids for e in slower.executions] == [e.output_ids for e in ordinary.executions]
    for one, other in zip(ordinary.executions, slower.executions, strict=True):
        assert other.timing.prefill_ms == one.timing.prefill_ms + 4
    # the anchor of the step is 26 ms, the 14 before it were 22: the median stays
    assert torch.allclose(slow_paid[0], rewards_of(slower, slow, lambda e: e.timing.prefill_ms), atol=1e-6)
    # 4 ms of 22 are .182 of full; beyond a limit of .6 that costs 4 * .182 / .6 = 1.21
    assert float((paid[0] - slow_paid[0]).max()) == pytest.approx(4 * (4 / 22) / 0.6, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "full_ms"),
    [
        ("llm_prefill_ms", 16),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("prefill_ms", 22), ("ttft_ms", 22))),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("total_ms", 38), ("request_ms", 38))),
    ],
)
def test_a_run_under_any_metric_from_end_to_end(stand_in, calls, metric, full_ms):
    cheapest_ms = {"prefill_ms": 13, "llm_prefill_ms": 7, "ttft_ms": 13, "total_ms": 20, "request_ms": 20}[metric]
    budgets = f"[{cheapest_ms / full_ms + 0.1:.3f}, 0.9]"
    before = len(calls)
    with stand_in.session(f"measure.latency_metric={metric}", f"validation.mean_budgets={budgets}") as session:
        controller = train(session)
        trained = len(calls)
        verdict = validate(session, controller)
    store = stand_in.store()
    assert store.metadata["metric"] == verdict.metric == controller.metric == metric
    assert store.metadata["full_ms"]["calibrate"] == full_ms
    assert controller.full_ms == pytest.approx(full_ms, rel=0.05)  # as the forecast knows it
    for score in verdict.scores:
        assert score.budget_ms == pytest.approx(score.budget.fraction * full_ms)
        if score.policy == "full":
            assert score.mean_ms.point == full_ms
    # validation measures: its calls are real ones, each stored
    assert len(calls) - trained == sum(len(trial.executions) for trial in store.trials("test")) > 0
    assert len(calls) - before == sum(len(trial.executions) for trial in store.trials())
    assert verdict.counted.generate_calls == len(calls) - trained


def break_hooks(monkeypatch, module):
    """Let a module run without its hooks, as inside a compiled region."""
    monkeypatch.setattr(module, "_call_impl", lambda *given, **named: module.forward(*given, **named))


@pytest.fixture(params=["vision", "decoder blocks"])
def unseen(request, stand_in, monkeypatch):
    """The part whose hooks do not fire."""
    parts = stand_in.model.model
    module = parts.vision_backbone if request.param == "vision" else parts.transformer["blocks"][0]
    break_hooks(monkeypatch, module)
    return request.param


def test_hooks_that_do_not_fire_end_the_run_if_so_configured(stand_in, unseen):
    message = rf"not seen: {unseen}.* and measure.on_unmeasured = 'stop'; name the parts with model.layout"
    with pytest.raises(MeasurementError, match=message), stand_in.session("measure.on_unmeasured=stop"):
        pytest.fail("the session began")


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["prefill_ms", "llm_prefill_ms"])
def test_or_switch_the_whole_run_to_totals(stand_in, unseen, metric):
    budgets = ("validation.mean_budgets=[0.95]", "validation.deadlines=[1.0]")
    with stand_in.session(f"measure.latency_metric={metric}", "measure.on_unmeasured=total", *budgets) as session:
        verdict = validate(session, train(session))
    store = stand_in.store()
    assert (store.metadata["source"], store.metadata["metric"]) == ("total_only", "total_ms")
    assert (verdict.source, verdict.metric) == ("total_only", "total_ms")
    assert store.metadata["calibration"]["full_ms"] == 38
    for trial in store.trials():
        for execution in trial.executions:
            # vision 6 ms, then the blocks twice: in the prefill and in one decode step
            blocks_ms = llm_prefill_ms(Setting({"block_skip": (), **execution.setting}))
            assert execution.timing.total_ms == 6 + 2 * blocks_ms
            assert (execution.timing.source, execution.timing.prefill_ms) == ("total_only", None)


@pytest.mark.slow
def test_nothing_stays_on_the_model_and_nothing_keeps_it(tmp_path):
    with pytest.MonkeyPatch.context() as patches:
        stand_in = StandIn(tmp_path, patches)
        hooks = hook_counts(stand_in.model)
        with stand_in.session("train.select_executions=0", "train.executions=1") as session:
            validate(session, train(session))
        load_controller(stand_in.store().folder / FOLDER, stand_in.model, None)
        assert hook_counts(stand_in.model) == hooks
        assert "generate" not in vars(stand_in.model)
    gone = weakref.ref(stand_in.model)
    del stand_in, session
    gc.collect()
    assert gone() is None
