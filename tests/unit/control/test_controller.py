"""The controller on the disk and on the bundled model."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import chronostat.control.controller as controller_module
from chronostat.control.controller import Controller, choosing_ms, load_controller, read_for
from chronostat.control.controller_files import METADATA, ControllerMetadata
from chronostat.control.learners import LEARNERS, learner_by_name
from chronostat.control.observer import Observer
from chronostat.data.demo import DemoTask
from chronostat.errors import BudgetError, ModelError, StoreError, UnlikeConditions
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import request_for
from chronostat.execution.sizes import RequestSizes
from chronostat.files import write_whole
from chronostat.knobs.registry import find_space
from chronostat.measure.clock import CpuClock, FakeClock
from chronostat.models.load import load_vlm
from chronostat.records import Budget
from stand_ins.control_fixtures import config_of, frozen
from stand_ins.controllers import policy_of

FULL_MS = 80.0
BUDGETS = tuple(Budget(kind=kind, fraction=f) for kind in ("mean", "deadline") for f in (0.3, 0.6, 0.9))
COIN = 0.5


both = pytest.mark.parametrize("controller", LEARNERS, indirect=True)


@pytest.fixture(scope="module", autouse=True)
def _sizes_are_seen_once():
    """What the processor's arithmetic means takes a second to see, and is the same for every controller here."""
    known = {}

    def sizes(model, processor, space):
        key = id(model), str(space.levels)
        if key not in known:
            known[key] = RequestSizes(model, processor, space)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chronostat.control.observer.RequestSizes", sizes)
        yield


@pytest.fixture(scope="module", params=["direct"])
def controller(request, bundled):
    """A controller that knows a calibration alone, with the latencies of each setting falling evenly to .2."""
    space, _ = find_space(bundled.model, bundled.processor, {})
    observer = Observer(bundled.model, bundled.processor, space)
    seen = [observer.seen(sample) for sample in DemoTask().split("validation")[:40]]
    evidence, rng = Evidence(space, seen, 3), np.random.default_rng(3)
    latencies = np.linspace(1, 0.2, len(space))
    for observation in seen[:3]:
        noise = np.exp(0.02 * rng.standard_normal(len(space)))
        evidence.add(
            observation,
            Answers(settings=np.arange(len(space)), quality=latencies**0.5, latency=latencies * noise),
        )
    evidence.fit()
    config = config_of(request.param, ("train", "group_size", 3))
    learner = learner_by_name(request.param)(space, evidence, config, BUDGETS, 3)
    metadata = ControllerMetadata(
        levels=space.levels,
        metric="prefill_ms",
        full_ms=FULL_MS,
        learner=request.param,
        config=config,
        budgets=BUDGETS,
        model=bundled.name,
        model_fingerprint=bundled.fingerprint,
        conditions=read_conditions(bundled.model),
        executions=108,
    )
    policy = frozen(request.param, evidence, learner, np.ones(len(space), dtype=bool))
    return Controller(policy=policy, observer=observer, metadata=metadata)


@pytest.fixture
def folder(controller, tmp_path):
    controller.save(tmp_path / "controller")
    return tmp_path / "controller"


def requests(bundled, count):
    samples = DemoTask().split("validation")[:count]
    return [request_for(sample, bundled.processor, None) for sample in samples]


def edit(folder, **changes):
    saved = json.loads((folder / METADATA).read_text())
    saved["controller"] |= changes
    (folder / METADATA).write_text(json.dumps(saved))


@both
def test_it_decides_the_same_after_loading(controller, folder, bundled):
    loaded = load_controller(folder, bundled.model, bundled.processor)
    assert loaded.metadata == controller.metadata
    assert loaded.space.settings == controller.space.settings
    for request in requests(bundled, 6):
        for budget in BUDGETS:
            chosen = controller.choose(request, budget, CpuClock(), COIN)
            assert loaded.choose(request, budget, CpuClock(), COIN).setting == chosen.setting
            assert chosen.controller_ms > 0


@both
def test_the_directory_is_readable_json_and_tensors(controller, folder, bundled):
    assert set(folder.iterdir()) == {folder / METADATA, policy_of(folder)}
    metadata = json.loads((folder / METADATA).read_text())["controller"]
    assert metadata["levels"]["vision_tokens"] == [272, 160, 80, 16]
    assert metadata["model_fingerprint"] == bundled.fingerprint
    assert (metadata["metric"], metadata["full_ms"], metadata["learner"]) == (
        "prefill_ms",
        80.0,
        controller.metadata.learner,
    )
    assert metadata["budgets"][0] == {"kind": "mean", "fraction": 0.3}
    assert metadata["conditions"]["torch"] == torch.__version__
    assert load_file(policy_of(folder)).keys() == controller.policy.state().keys()


@pytest.mark.parametrize(
    ("field", "value"),
    [("threads", 7), ("device", "NVIDIA H200"), ("dtype", "bfloat16"), ("attention", "eager"), ("cpu", "Z80")],
)
def test_under_other_conditions_it_is_refused_until_it_is_calibrated(folder, bundled, field, value):
    here = read_conditions(bundled.model)
    edit(folder, conditions=asdict(replace(here, **{field: value})))
    differing = re.escape(f"{field}: {value} != {getattr(here, field)}")
    renew = re.escape(f"renew it here with: chronostat calibrate {folder}")
    with pytest.raises(UnlikeConditions, match=rf"\(.*{differing}.*\); set the same ones, or {renew}$"):
        load_controller(folder, bundled.model, bundled.processor)
    assert read_for(folder, bundled.model, bundled.processor).full_ms == FULL_MS


@pytest.mark.slow
def test_a_controller_in_another_dtype_is_of_this_model(folder):
    vlm = load_vlm(device="cpu", dtype="bfloat16")
    with pytest.raises(UnlikeConditions, match=r"dtype: float32 != bfloat16\); set the same ones, or renew it"):
        load_controller(folder, vlm.model, vlm.processor)
    assert read_for(folder, vlm.model, vlm.processor).full_ms == FULL_MS


def test_a_controller_of_the_first_rule_loads(folder, bundled):
    edit(folder, model_fingerprint="2e29f80f8ab1")
    assert load_controller(folder, bundled.model, bundled.processor).full_ms == FULL_MS


def test_conditions_from_before_adapters_were_recorded_are_not_unlike(folder, bundled):
    old = asdict(read_conditions(bundled.model))
    del old["adapter"]
    edit(folder, conditions=old)
    load_controller(folder, bundled.model, bundled.processor)
    edit(folder, conditions={**old, "adapter": "default (LORA)"})
    with pytest.raises(UnlikeConditions, match=r"adapter: default \(LORA\) != none.* chronostat calibrate"):
        load_controller(folder, bundled.model, bundled.processor)


def test_another_model_is_refused(folder, bundled):
    weight = next(bundled.model.parameters())
    with torch.no_grad():
        weight.add_(1)
    try:
        with pytest.raises(
            ModelError, match=rf"was trained for model {bundled.name} \({bundled.fingerprint}\), not for"
        ):
            load_controller(folder, bundled.model, bundled.processor)
    finally:
        with torch.no_grad():
            weight.sub_(1)


def test_another_view_of_requests_is_refused(folder, bundled, monkeypatch):
    class Smaller(Observer):
        def __init__(self, *given):
            super().__init__(*given)
            self.width -= 1

    monkeypatch.setattr(controller_module, "Observer", Smaller)
    width = bundled.model.get_input_embeddings().weight.shape[1]
    with pytest.raises(ModelError, match=rf"embeddings of {width} values, this model has {width - 1}; train it anew"):
        load_controller(folder, bundled.model, bundled.processor)


def test_a_folder_without_a_controller(tmp_path, bundled):
    with pytest.raises(
        StoreError, match=r"holds no controller \(controller.json is missing\); name the controller fol"
    ):
        load_controller(tmp_path, bundled.model, bundled.processor)


def test_an_unknown_learner(folder, bundled):
    edit(folder, learner="ppo")
    with pytest.raises(StoreError, match="unknown learner 'ppo'; known learners: direct, rloo"):
        load_controller(folder, bundled.model, bundled.processor)


def test_tensors_without_what_a_policy_is_made_of(controller, folder, bundled):
    state = controller.policy.state()
    del state["draws"]
    lacking = replace(controller, policy=Lacking(state))
    lacking.save(folder)
    with pytest.raises(StoreError, match=r"cannot read the controller in .*: 'draws'; train it anew"):
        load_controller(folder, bundled.model, bundled.processor)


class Lacking:
    """A policy whose state is given."""

    def __init__(self, state):
        self.state = lambda: state


@pytest.mark.parametrize(
    "change", [{"full_ms": -1.0}, {"metric": "speed"}, {"budgets": [{"kind": "mean", "fraction": 0}]}]
)
def test_facts_that_cannot_be(folder, bundled, change):
    edit(folder, **change)
    with pytest.raises(StoreError, match=re.escape(f"cannot read {folder / METADATA}")):
        load_controller(folder, bundled.model, bundled.processor)


def test_damaged_files(folder, bundled):
    whole = (folder / METADATA).read_text()
    (folder / METADATA).write_text(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="not written by this version"):
        load_controller(folder, bundled.model, bundled.processor)
    (folder / METADATA).write_text(whole)
    policy = policy_of(folder)
    policy.write_bytes(policy.read_bytes()[:100])
    with pytest.raises(StoreError, match=re.escape(str(policy))):
        load_controller(folder, bundled.model, bundled.processor)
    policy.unlink()
    with pytest.raises(StoreError, match=re.escape(str(policy))):
        load_controller(folder, bundled.model, bundled.processor)


def test_tensors_of_another_training(folder, bundled):
    tensors = load_file(policy_of(folder))
    save_file(
        {name: np.asarray(tensor + 1) for name, tensor in tensors.items()}, policy_of(folder), {"chronostat": "{}"}
    )
    with pytest.raises(StoreError, match=r"was changed: it is not what controller.json beside it names"):
        load_controller(folder, bundled.model, bundled.processor)


@pytest.mark.parametrize("name", ["policy", METADATA])
def test_killed_while_it_is_saved_again_the_earlier_one_is_whole(controller, folder, bundled, monkeypatch, name):
    legal = np.arange(len(controller.space)) != 1
    other = replace(controller, policy=replace(controller.policy, legal=legal))

    def killed(path, content):
        if path.name.startswith(name):
            path.with_name(f".{path.name}.tmp").write_bytes(content[:9])
            raise KeyboardInterrupt
        write_whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("chronostat.control.controller_files.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            other.save(folder)
    assert load_controller(folder, bundled.model, bundled.processor).policy.legal.all()
    other.save(folder)
    assert not load_controller(folder, bundled.model, bundled.processor).policy.legal[1]
    assert set(folder.iterdir()) == {folder / METADATA, policy_of(folder)}


def test_an_earlier_policy_that_cannot_be_removed(controller, folder, monkeypatch):
    (folder / "policy-0123.safetensors").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*controller: Is a directory"):
        controller.save(folder)


def test_a_folder_that_cannot_be_made(controller, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*controller: Not a directory; a file stands where a folder"):
        controller.save(tmp_path / "file" / "controller")


@both
def test_a_request_is_answered_within_its_budget(controller, bundled, monkeypatch):
    image, prompt = requests(bundled, 1)[0].images[0], "what is the background?"
    monkeypatch.setattr(controller_module, "_COIN", np.random.default_rng(4))
    execution = controller.generate(
        bundled.model, bundled.processor, image, prompt, budget_ms=0.5 * FULL_MS, max_new_tokens=3
    )
    request, coin = request_of(bundled, image, prompt), float(np.random.default_rng(4).random())
    assert execution.setting == controller.choose(request, Budget(kind="mean", fraction=0.5), CpuClock(), coin).setting
    assert execution.timing.prefill_ms > 0
    assert execution.controller_ms > 0
    assert execution.request_ms == pytest.approx(
        execution.preprocess_ms + execution.controller_ms + execution.timing.total_ms
    )
    assert execution.answer is not None
    assert execution.quality is None


def request_of(bundled, image, prompt):
    template = requests(bundled, 1)[0]
    return replace(template, images=[image], sample=replace(template.sample, prompt=prompt))


@both
def test_a_budget_that_no_setting_can_meet_names_the_cheapest_in_ms(controller, bundled):
    expected = r"budget mean 0.125 of full; the cheapest needs 0.2\d+ of full, .*\(16.\d ms where full takes 80.0 ms; "
    with pytest.raises(BudgetError, match=expected + "asked for were 10.0 ms"):
        controller.generate(bundled.model, bundled.processor, Image.new("RGB", (128, 128)), "x", budget_ms=10.0)


@pytest.mark.parametrize("budget_ms", [-1.0, 0, float("nan"), float("inf"), "20", None])
def test_a_budget_is_a_length_of_time(controller, bundled, budget_ms):
    with pytest.raises(BudgetError, match=f"budget_ms = {budget_ms!r}: give a number of milliseconds above 0"):
        controller.generate(bundled.model, bundled.processor, Image.new("RGB", (8, 8)), "x", budget_ms=budget_ms)


def test_requests_of_one_mean_budget_are_spread_by_their_coins(controller, bundled):
    """Halfway between two corners of the mix, half of the coins fall on either side."""
    request = requests(bundled, 1)[0]
    budget = Budget(kind="mean", fraction=0.5)
    arm = "learned" if controller.policy.gains["mean"].is_learned(0.5) else "plain"
    cheaper, dearer, share = controller.policy.frontiers[arm].at(0.5)
    assert cheaper < dearer
    chosen = [controller.choose(request, budget, CpuClock(), coin).setting for coin in (0.0, share, 0.999)]
    points = [controller.policy.frontiers[arm].point(0.5, coin) for coin in (0.0, share, 0.999)]
    assert points == [dearer, cheaper, cheaper]
    assert chosen[1] == chosen[2]


def test_several_budgets_are_charged_the_one_look(controller, bundled):
    clock, request = FakeClock(), requests(bundled, 1)[0]
    looks = []
    look = controller.observer

    def looking(given):
        looks.append(given)
        clock.advance_ms(1.5)
        return look(given)

    choices = replace(controller, observer=looking).choose_each(request, BUDGETS, clock, COIN)
    assert len(looks) == 1
    assert [choice.controller_ms for choice in choices] == pytest.approx([1.5] * len(BUDGETS))


def test_what_choosing_takes_is_the_mean_of_all_but_the_first(controller, bundled):
    clock, took_ms = FakeClock(), iter([50.0, 1.0, 2.0])
    look = controller.observer
    slow = replace(controller, observer=lambda given: (clock.advance_ms(next(took_ms)), look(given))[1])
    assert choosing_ms(slow, requests(bundled, 3), clock) == pytest.approx(1.5)
