"""Whatever measures more than once follows one call before, so that a projector whose name says nothing is measured."""

import pytest

from chronostat.config import load_config
from chronostat.execution.execute import BatchRequest, execute, request_for
from chronostat.knobs.registry import find_space
from chronostat.measure.clock import FakeClock
from chronostat.models.anatomy import anatomy_of, find_anatomy, remember
from chronostat.models.load import load_vlm
from chronostat.records import Setting
from chronostat.runs.session import begin_with
from chronostat.runs.workload import BareModel, Workload
from chronostat.studies.doctor import examine
from chronostat.studies.knob_effects import measure_effects
from chronostat.studies.survey import Arm, Plan, survey
from stand_ins.unlisted import OwnGenerate, Plain, SecondTower, unlisted, unlisted_batch


@pytest.fixture
def renamed():
    """The bundled model with a projector called ``mlp1``."""
    vlm = load_vlm(device="cpu")
    inner = vlm.model.model
    projector = inner.multi_modal_projector
    del inner.multi_modal_projector
    vars(inner)["multi_modal_projector"] = projector  # the forward still finds it, as no module
    inner.mlp1 = projector
    remember(vlm.model, find_anatomy(vlm.model))
    return vlm


def asked(vlm, sample):
    return request_for(sample, vlm.processor, None)


def assert_found(vlm, request, before):
    assert before is None
    assert anatomy_of(vlm.model).projector == ("model.mlp1",)
    timing = execute(vlm.model, request, setting=Setting(), max_new_tokens=2).timing
    assert (timing.source, timing.projector_ms > 0) == ("measured", True)


def test_a_survey_finds_it(renamed, demo_sample):
    request = asked(renamed, demo_sample)
    before = execute(renamed.model, request, setting=Setting(), max_new_tokens=1).timing.projector_ms
    arm = Arm(name="full", vlm=renamed, setting=Setting(), requests=[request])
    found = survey([arm], Plan(repeats=1, max_new_tokens=2))
    assert [shot.timing.projector_ms is not None for shot in found.columns[0].shots] == [True]
    assert_found(renamed, request, before)


def test_doctor_finds_it(renamed, demo_sample):
    request = asked(renamed, demo_sample)
    before = execute(renamed.model, request, setting=Setting(), max_new_tokens=1).timing.projector_ms
    examine(renamed, request, seconds=0.001)
    assert_found(renamed, request, before)


@pytest.mark.slow
def test_the_effects_of_knobs_find_it(renamed, demo_sample):
    request = asked(renamed, demo_sample)
    before = execute(renamed.model, request, setting=Setting(), max_new_tokens=1).timing.projector_ms
    space, absent = find_space(renamed.model, renamed.processor, {"moe_topk": (4, 1), "vision_tokens": (272,)})
    measure_effects(renamed, request, space, absent, new_tokens=2, repeats=1)
    assert_found(renamed, request, before)


class Requests:
    """The same batch under every name."""

    def split(self, name):
        return [
            BatchRequest(batch=unlisted_batch(), id=f"{name}-{i}", split=name, score=lambda _: 1.0) for i in range(4)
        ]


def session_of(model, folder, *overrides):
    config = load_config(None, ["measure.max_new_tokens=3", "train.calibration_executions=8", *overrides])
    workload = Workload.of(config, BareModel(model=model, name="unlisted"), Requests())
    return begin_with(workload, run_dir=folder, command="chronostat train", clock=FakeClock())


def test_a_run_finds_it(tmp_path):
    with session_of(unlisted(Plain), tmp_path / "run") as session:
        assert (session.source, session.metric) == ("measured", "prefill_ms")
        trials = session.store.trials("warmup")
        assert [trial.executions[0].timing.projector_ms for trial in trials[:2]] == [None, 0.0]


def test_a_run_that_a_projector_outside_every_stage_would_spoil_is_measured_all_the_same(tmp_path):
    with session_of(unlisted(OwnGenerate), tmp_path / "run") as session:
        assert session.source == "measured"


def test_a_run_of_doubtful_stages_says_why_and_goes_on_with_the_total(tmp_path):
    with session_of(unlisted(SecondTower), tmp_path / "run") as session:
        assert (session.source, session.metric) == ("total_only", "total_ms")
        assert "fovea took the image" in session.store.trials("warmup")[1].executions[0].timing.unseen
