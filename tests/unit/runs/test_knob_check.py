"""Knobs prove themselves at the start of a run: counted work, undo bit for bit, gradients; a broken one stops it."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import chronostat.control.learners.rloo
import chronostat.execution.execute
import stand_ins.knobs
from chronostat.data.demo import DemoTask
from chronostat.errors import KnobError, MeasurementError
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import KNOBS
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import FakeClock
from chronostat.measure.work import Work
from chronostat.models.weights import differences, first_difference, state_of, weights_checksum
from chronostat.records import Setting
from chronostat.runs.knob_check import _proved, prove_knobs, require_gradients, varying_knobs
from chronostat.runs.training import train
from stand_ins.molmo_like import molmo_like
from stand_ins.runs import fail_under, stand_in

__all__ = ["stand_in"]


def stored_executions(store, phase):
    return sum(len(trial.executions) for trial in store.trials(phase))


def test_what_was_counted_is_in_the_facts_of_the_run(stand_in):
    with stand_in.session():
        pass
    store = stand_in.store()
    assert store.metadata["selfcheck"] == {
        "failed": None,
        "knobs": {
            "moe_topk": {"count": "experts_per_token", "full": 2, "values": {"1": 1}, "idle": []},
            "block_skip": {"count": "blocks_run", "full": 4, "values": {"1,": 3, "1,2": 2}, "idle": []},
        },
    }
    # counting takes no execution of its own: full twice, then the 6 settings
    assert store.metadata["phases"]["warmup"]["generate_calls"] == stored_executions(store, "warmup") == 2 + 6


@pytest.mark.parametrize(("learner", "heads"), [("direct", set()), ("rloo", {"moe_topk", "block_skip"})])
def test_the_first_update_reaches_every_head(stand_in, learner, heads):
    with stand_in.session(f"train.learner={learner}") as session:
        train(session)
    gradients = stand_in.store().metadata["selfcheck"]["gradients"]
    assert gradients.keys() == heads  # evidence has no heads
    assert all(length > 0 for length in gradients.values())


def test_a_knob_with_one_value_has_nothing_to_prove(stand_in):
    with stand_in.session("knobs.moe_topk=[2]") as session:
        train(session)
    check = stand_in.store().metadata["selfcheck"]
    assert list(check["knobs"]) == ["block_skip"]
    assert "moe_topk" not in check["gradients"]


BROKEN = [
    ("AttributeOnly", "lazy changes no work here: under lazy = 1, prefill_inputs stays "),
    ("LeavesAttribute", "lazy = 1 is not undone: left_by_knob of model was 2 and is 1"),
    ("LeavesHook", "lazy = 1 is not undone: _forward_hooks of lm_head was "),
    ("LeavesConfig", "lazy = 1 is not undone: config of the model was "),
    ("RoundsWeights", "changes weights: lm_head.weight; a knob must leave every bit as it was"),
    ("ForgetsInTheForward", "changes the model for good: config of the model was "),
]


@pytest.mark.parametrize(("knob", "message"), BROKEN)
def test_a_broken_knob_stops_the_run_before_training(stand_in, monkeypatch, knob, message):
    monkeypatch.setitem(KNOBS, "lazy", getattr(stand_ins.knobs, knob))
    with pytest.raises(KnobError) as stopped, stand_in.session() as session:
        train(session)
    assert message in str(stopped.value)
    store = stand_in.store()
    assert store.metadata["selfcheck"] == {"failed": str(stopped.value)}
    assert stored_executions(store, "calibrate") == 0
    assert store.metadata["phases"]["warmup"]["generate_calls"] == stored_executions(store, "warmup")


def test_a_knob_that_keeps_its_promises_is_accepted_by_the_same_check(stand_in, monkeypatch):
    monkeypatch.setitem(KNOBS, "lazy", stand_ins.knobs.FewerExperts)
    with stand_in.session("knobs.moe_topk=[2]"):
        pass
    assert stand_in.store().metadata["selfcheck"]["knobs"]["lazy"]["values"] == {"1": 1}


def test_a_setting_that_fails_before_its_call_does_not_stop_the_run(stand_in, monkeypatch):
    original = chronostat.execution.execute.applied

    def failing(setting, *rest):
        if setting == Setting(moe_topk=1, block_skip=(1, 2)):
            raise ValueError("no such image")
        return original(setting, *rest)

    monkeypatch.setattr(chronostat.execution.execute, "applied", failing)
    with stand_in.session() as session:
        train(session)
    store = stand_in.store()
    assert store.metadata["selfcheck"]["knobs"]["block_skip"]["values"] == {"1,": 3, "1,2": 2}
    invalid = {execution.invalid for trial in store.trials("warmup") for execution in trial.executions}
    assert invalid == {None, "ValueError: no such image; generate() was not called"}
    for phase in ("warmup", "calibrate", "train"):
        called = [e.called for trial in store.trials(phase) for e in trial.executions]
        assert phase == "train" or not all(called)  # it was taken out of the action space before
        assert store.metadata["phases"][phase]["generate_calls"] == sum(called)


def test_a_head_without_gradient_stops_training(stand_in, monkeypatch):
    original = chronostat.control.learners.rloo._level_one_hot

    def deaf(space):
        columns = original(space)
        columns[:, -len(space.levels["block_skip"]) :] = 0  # block_skip has no say in the logits
        return columns

    monkeypatch.setattr(chronostat.control.learners.rloo, "_level_one_hot", deaf)
    with (
        stand_in.session("train.learner=rloo") as session,
        pytest.raises(KnobError, match="the first update gave no gradient to block_skip, so it would never be learned"),
    ):
        train(session)
    store = stand_in.store()
    assert store.metadata["selfcheck"]["failed"].startswith(
        "self-check: the first update gave no gradient to block_skip"
    )
    assert store.metadata["selfcheck"]["knobs"].keys() == {"moe_topk", "block_skip"}
    assert len(store.trials("train")) == 1


def test_a_run_that_goes_on_keeps_what_was_checked(stand_in):
    with stand_in.session() as session:
        train(session)
    before = stand_in.store().metadata["selfcheck"]
    with stand_in.reopened():
        pass
    assert stand_in.store().metadata["selfcheck"] == before


class Deaf:
    def head_gradients(self):
        return {}


def test_a_learner_without_gradients_has_none_to_prove():
    assert require_gradients(Deaf(), ActionSpace({"moe_topk": (2, 1)}).settings) == {}


def test_a_value_that_is_pruned_everywhere_varies_nothing():
    space = ActionSpace({"moe_topk": (2, 1), "block_skip": ((), (1,))}, {"moe_topk=1 block_skip=-": "no"})
    assert varying_knobs(space.settings) == ["moe_topk", "block_skip"]
    pruned = {"moe_topk=1 block_skip=-": "no", "moe_topk=1 block_skip=1,": "no"}
    assert varying_knobs(ActionSpace({"moe_topk": (2, 1), "block_skip": ((), (1,))}, pruned).settings) == ["block_skip"]


def test_executions_that_fail_prove_nothing(stand_in, monkeypatch):
    with stand_in.session() as session:
        monkeypatch.setattr(session.runner, "time_limit_s", None)
        for setting in session.space.settings:
            if setting["moe_topk"] == 1:
                fail_under(monkeypatch, session, setting)
        with pytest.raises(MeasurementError, match="could not execute moe_topk under full and another value"):
            prove_knobs(
                session.runner,
                session.space,
                session.samples("train"),
                index=9,
                weights=weights_checksum(stand_in.model),
            )


# --- on a processor


def bundled_runner(bundled):
    trials = []
    runner = TrialRunner(
        model=bundled.model,
        processor=bundled.processor,
        quality=None,
        full=None,
        max_new_tokens=1,
        clock=FakeClock(),
        seed=0,
        keep=trials.append,
        anchor_every_s=1e9,
    )
    runner._last_anchor_ns = 0
    return runner, trials


def sized(sample, size):
    return replace(sample, load_images=lambda: (Image.new("RGB", size),))


def test_an_image_that_is_too_small_for_a_value_is_not_held_against_the_knob(bundled):
    runner, trials = bundled_runner(bundled)
    space = ActionSpace({"vision_tokens": (272, 256)})  # 16 tiles and 15
    runner.run("warmup", 0, runner.request(DemoTask().split("train")[0]), [space.full])  # lazy hooks of the library
    first, second = DemoTask().split("train")[:2]
    wide, square = sized(first, (600, 360)), sized(second, (400, 400))
    proof = prove_knobs(runner, space, [wide, square], index=2, weights=weights_checksum(bundled.model))[
        "vision_tokens"
    ]
    assert proof.count == "prefill_inputs"
    assert proof.values["256"] < proof.full
    assert len(trials) == 2  # the second sample was prepared, not executed
    with pytest.raises(KnobError, match="vision_tokens changes no work here: under vision_tokens = 256, image_tokens "):
        prove_knobs(runner, space, [wide, wide], index=2, weights=weights_checksum(bundled.model))


def test_the_counts_of_the_bundled_model(bundled):
    runner, _ = bundled_runner(bundled)
    space = ActionSpace({"vision_tokens": (272, 80, 16), "moe_topk": (4, 1), "block_skip": ((), (3, 4))})
    proofs = prove_knobs(runner, space, DemoTask().split("train"), index=2, weights=weights_checksum(bundled.model))
    assert proofs["vision_tokens"].values == {"80": 80, "16": 16}
    assert proofs["moe_topk"].values == {"1": 1}
    assert proofs["block_skip"].values == {"3,4": 6}


def test_a_count_that_is_not_known_is_absent_and_not_0():
    known = Work(image_tokens=None, vision_inputs=8, experts_per_token=2, blocks_run=4, prefill_inputs=9, forwards=2)
    fewer, unknown = replace(known, experts_per_token=1), replace(known, experts_per_token=None)
    proof = _proved("experts_per_token", {1: (known, fewer), (1, 1): (known, unknown)})
    assert (proof.full, proof.values, proof.idle) == (2, {"1": 1}, ("1,1",))


# --- the state of a model


def test_the_checksum_sees_a_bit_and_a_place():
    layer = nn.Linear(64, 32)
    before = weights_checksum(layer)
    with torch.no_grad():
        swapped = layer.weight[0, :2].flip(0).clone()
        layer.weight[0, :2] = swapped
    assert weights_checksum(layer)["weight"] != before["weight"]
    assert weights_checksum(layer)["bias"] == before["bias"]
    with torch.no_grad():
        layer.weight[0, :2] = swapped.flip(0)
        assert weights_checksum(layer) == before
        layer.bias[3] = -layer.bias[3]
    assert weights_checksum(layer)["bias"] != before["bias"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 1021, 5000])
def test_the_checksum_takes_every_type_and_size(dtype, count):
    module = nn.Module()
    module.register_buffer("numbers", torch.arange(count).to(dtype))
    before = weights_checksum(module)
    assert weights_checksum(module) == before
    module.numbers[-1] = 77
    assert weights_checksum(module) != before


def test_the_state_sees_attributes_lists_configurations_modules_and_hooks():
    model = molmo_like()
    model.order = [1, 2]
    before = state_of(model, None)
    assert first_difference(before, state_of(model, None)) is None

    model.order.append(3)
    model.config.moe_top_k = 1
    model.model.transformer["blocks"][1] = nn.Identity()
    model.lm_head.register_forward_hook(lambda *_: None)
    places = differences(before, state_of(model, None))
    assert {("", "order"), ("", "config"), ("lm_head", "_forward_hooks")} <= places
    assert ("model.transformer.blocks", "_modules") in places
