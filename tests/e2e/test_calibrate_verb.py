"""chronostat calibrate as it is typed: on a simulated machine, with what is wrong, and on the bundled model itself."""

import json

import pytest

import chronostat.execution.trials
from chronostat.cli.actions.calibrate import said as lines_of
from chronostat.control.controller import load_controller
from chronostat.control.controller_files import METADATA
from chronostat.control.recalibration import Recalibration, Renewed
from chronostat.errors import UnlikeConditions
from chronostat.models.load import load_vlm
from chronostat.records import Budget, Estimate
from e2e.commands import refusal, typed
from stand_ins.controllers import policy_of
from stand_ins.machines import Machine, requests_of, trained_on

CONFIG, DATA, MODEL, MEASUREMENT, STORE = 2, 3, 4, 6, 8


@pytest.fixture(scope="module")
def trained(bundled):
    return trained_on(bundled, Machine(), metric="prefill_ms")


@pytest.fixture
def folder(trained, tmp_path):
    trained.save(tmp_path / "controller")
    return tmp_path / "controller"


@pytest.fixture
def machine(monkeypatch):
    """Vision takes three times as long as where the controller was trained."""
    slow = Machine(vision=3.0)
    monkeypatch.setattr(chronostat.execution.trials, "execute", slow)
    return slow


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edited(folder, **changes):
    saved = json.loads((folder / METADATA).read_text())
    saved["controller"] |= changes
    (folder / METADATA).write_text(json.dumps(saved))
    return folder


def refused(status, *words):
    said = typed("calibrate", *words)
    assert said.status == status, said.err
    return refusal(said)


def test_a_renewed_controller_says_what_moved(folder, machine, tmp_path, bundled):
    before, file = contents(folder), tmp_path / "moved.json"
    said = typed("calibrate", folder, "--out", tmp_path / "new", "--json", file)
    assert said.status == 0, said.err
    assert len(machine.executed) <= 60
    assert contents(folder) == before
    data = json.loads(file.read_text())
    # of full 36 of 101 ms were vision, now 108 of 173; with 16 tokens 10.4 of 22 ms, now 31 of 43 ms
    assert data["full_ms"]["point"] == pytest.approx(173, rel=0.1)
    assert data["full_before_ms"] == pytest.approx(101, rel=0.05)
    few = next(each for each in data["settings"] if each["setting"] == "vision_tokens=16 moe_topk=4 block_skip=-")
    assert few["before"] == pytest.approx(22 / 101, rel=0.1)
    assert few["now"]["point"] == pytest.approx(43 / 173, rel=0.2)
    moved = sum(each["moved"] for each in data["settings"])
    assert moved > 3
    for words in (
        f"{moved} of 35 settings moved as a fraction of full, ",
        f"times the {data['full_before_ms']:.1f} ms before",
        f"learned from {data['executions']} executions; half of the settings are known to",
        f"controller: {tmp_path / 'new'}",
    ):
        assert words in said.out
    (row,) = [line for line in said.out.splitlines() if line.strip().startswith("vision_tokens=16 ")]
    assert row.strip().endswith("moved")
    new = load_controller(tmp_path / "new", bundled.model, bundled.processor)
    assert new.full_ms == data["full_ms"]["point"]
    (request,) = requests_of(bundled, "test", 1)
    assert new.policy.decide(new.observer(request), Budget(kind="mean", fraction=0.6), 0.5) < len(new.space)


def test_in_its_place_and_where_it_was_carried_to(folder, machine, bundled):
    saved = json.loads((folder / METADATA).read_text())["controller"]["conditions"]
    edited(folder, conditions={**saved, "machine": "another", "dtype": "bfloat16"})
    told = r"(?s)knows what settings take under other conditions \(.*machine.*\); set the same ones, or renew it here"
    with pytest.raises(UnlikeConditions, match=told):
        load_controller(folder, bundled.model, bundled.processor)
    said = typed("calibrate", folder)
    assert said.status == 0, said.err
    conditions = load_controller(folder, bundled.model, bundled.processor).metadata.conditions
    assert conditions.dtype == "float32"
    assert conditions.machine != "another"
    assert len(list(folder.iterdir())) == 2


def test_where_nothing_moved_it_says_so(folder, monkeypatch):
    monkeypatch.setattr(chronostat.execution.trials, "execute", Machine(seed=4, noise=0.05))
    said = typed("calibrate", folder)
    assert said.status == 0
    assert "not seen to differ from" in said.out
    assert "no setting was seen to move as a fraction of full" in said.out


def test_what_is_no_controller(tmp_path, folder, machine):
    before = contents(folder)
    message = (
        f"{tmp_path / 'none'} holds no controller (controller.json is missing); name the controller folder of a run"
    )
    assert refused(STORE, tmp_path / "none") == message
    policy_of(folder).write_bytes(b"damaged")
    assert "cannot read" in refused(STORE, folder)
    (folder / policy_of(folder).name).write_bytes(before[policy_of(folder).name])
    (folder / METADATA).write_text("{")
    said = typed("calibrate", folder)
    assert said.status == STORE
    assert "it was not written by this version of chronostat" in said.err
    assert machine.executed == []


def test_another_model(folder, machine, trained):
    kind, architecture, *weights = trained.metadata.model_fingerprint.split("-")
    other = "-".join([kind, architecture[::-1], *weights])
    assert "was trained for model bundled demo_vlm" in refused(MODEL, edited(folder, model_fingerprint=other))
    assert machine.executed == []


def test_requests_that_came_by_in_a_file(folder, machine, tmp_path, demo_sample):
    demo_sample.load_images()[0].save(tmp_path / "scene.png")
    line = {"id": "a", "image": "scene.png", "prompt": "What colour?", "answers": ["red"], "split": "test"}
    data = tmp_path / "came.jsonl"
    data.write_text(json.dumps(line))
    said = typed("calibrate", folder, "--data", data, "--executions", 30)
    assert said.status == 0, said.err
    assert len(machine.executed) <= 30
    data.write_text("")
    assert f"the data file {data} holds no sample" in refused(DATA, folder, "--data", data)
    assert "cannot read the data file" in refused(DATA, folder, "--data", tmp_path / "none.jsonl")


def test_too_few_executions_and_keys_that_are_not_taken(folder, machine):
    said = typed("calibrate", folder, "--executions", "19")
    assert said.status == CONFIG
    assert "greater than or equal to 20" in " ".join(said.err.replace("│", " ").split())
    for override in (
        "train.executions=3",
        "measure.sample=true",
        "knobs.moe_topk=[4]",
        "measure.latency_metric=ttft_ms",
    ):
        assert f"--set {override}: calibrate takes keys of model, and measure.threads" in refused(
            CONFIG, folder, "--set", override
        )
    assert machine.executed == []


def test_full_that_cannot_be_measured_writes_nothing(folder, tmp_path, monkeypatch, trained):
    before = contents(folder)
    monkeypatch.setattr(chronostat.execution.trials, "execute", Machine(fails=frozenset({trained.space.full})))
    assert "the start-up check failed: RuntimeError: out of memory" in refused(MEASUREMENT, folder)
    assert contents(folder) == before
    refused(MEASUREMENT, folder, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_end_in_the_middle_leaves_the_old_one_whole(folder, monkeypatch):
    before = contents(folder)

    class Interrupted(Machine):
        def __call__(self, *given, **options):
            if len(self.executed) == 25:
                raise KeyboardInterrupt
            return super().__call__(*given, **options)

    monkeypatch.setattr(chronostat.execution.trials, "execute", Interrupted())
    assert typed("calibrate", folder).status == 130
    assert contents(folder) == before


@pytest.mark.slow
def test_on_the_bundled_model_with_another_attention(folder, tmp_path):
    """What the machine of this test takes is not what the simulated one took: the controller learns it."""
    words = ("--executions", 20, "--set", "model.attention=eager", "--out", tmp_path / "new")
    said = typed("calibrate", folder, *words)
    assert said.status == 0, said.err
    vlm = load_vlm(device="cpu", attention="eager")
    new = load_controller(tmp_path / "new", vlm.model, vlm.processor)
    assert new.metadata.conditions.attention == new.metadata.config.model.attention == "eager"
    (image,) = requests_of(vlm, "test", 1)[0].images
    answered = new.generate(vlm.model, vlm.processor, image, "What colour?", budget_ms=0.8 * new.full_ms)
    assert answered.setting in new.space.settings


def test_what_is_said_where_full_is_the_only_setting(trained):
    full = Renewed(setting=trained.space.full, before=1.0, now=Estimate(point=1.0, low=1.0, high=1.0), executions=12)
    renewed = Recalibration(
        controller=trained,
        full_before_ms=100.0,
        full_ms=Estimate(point=101.0, low=95.0, high=106.0),
        settings=(full,),
        executions=12,
        disturbed=0,
        failed=0,
        taken_out={},
    )
    assert list(lines_of(renewed)) == [
        "full: prefill_ms 101.0 ms [95.0, 106.0], not seen to differ from 100.0 ms before",
        "no setting was seen to move as a fraction of full",
        "learned from 12 executions",
    ]
