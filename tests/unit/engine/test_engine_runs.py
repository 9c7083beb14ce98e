"""The engine of a run: chosen by the configuration, a condition of every number, one for all its executions."""

from dataclasses import asdict, replace

import pytest

from chronostat.config import load_config
from chronostat.data.demo import DemoTask
from chronostat.engine import graphed
from chronostat.engine.choosing import running_by
from chronostat.errors import ConfigError, ModelError, UnlikeConditions
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import BatchRequest
from chronostat.execution.trials import TrialRunner
from chronostat.measure.clock import clock_for
from chronostat.records import Conditions, Setting
from chronostat.runs.workload import BareModel, Workload
from stand_ins.sample_run import CONDITIONS
from zoo.build import build


@pytest.fixture(scope="module")
def zoo():
    zoo = build("llava")
    zoo.model.generate(**zoo.batch, max_new_tokens=3)
    return zoo


def workload(bundled, *overrides):
    return Workload.of(load_config(None, ["model.device=cpu", *overrides]), bundled, DemoTask())


@pytest.mark.parametrize(("asked", "engine"), [("eager", "eager"), ("auto", "eager"), ("graph", "graph")])
def test_the_configuration_chooses_and_conditions_tell(bundled, asked, engine):
    with workload(bundled, f"model.engine={asked}").stabilised() as eager_because:
        assert eager_because is None  # on a CPU auto asks for nothing else
        assert read_conditions(bundled.model).engine == engine
    assert read_conditions(bundled.model).engine == "eager"
    assert "forward" not in vars(bundled.model.model.language_model)


def test_an_unknown_engine_and_too_few_graphs_are_refused():
    with pytest.raises(ConfigError, match=r"model\.engine.*'eager', 'graph' or 'auto'"):
        load_config(None, ["model.engine=warp"])
    with pytest.raises(ConfigError, match=r"model\.most_graphs"):
        load_config(None, ["model.most_graphs=1"])


class OneBatch:
    """The same request in every split."""

    def __init__(self, request):
        self._request = request

    def split(self, name):
        return [self._request]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("aya_vision", "layers of its cache are a DynamicSlidingWindowLayer"),
        ("qwen3_vl_moe", "its decoder is given a list as deepstack_visual_embeds"),  # seen by executing full
    ],
)
def test_graph_is_refused_where_full_cannot_run_by_it(name, reason):
    zoo = build(name)
    request = BatchRequest(batch=zoo.batch, id="one")
    asked = Workload.of(
        load_config(None, ["model.engine=graph"]), BareModel(model=zoo.model, name=name), OneBatch(request)
    )
    message = f"{name} cannot run by the engine 'graph': {reason}.*; ask for 'auto' or 'eager'"
    with pytest.raises(ModelError, match=message), asked.stabilised():
        pass
    assert read_conditions(zoo.model).engine == "eager"


def test_it_is_told_which_towers_run_eagerly_beside_the_graphs():
    zoo, said = build("qwen2_vl"), []
    options = {"most_graphs": 8, "try_full": lambda: zoo.model.generate(**zoo.batch, max_new_tokens=2)}
    with running_by("graph", zoo.model, "tiny", **options, told=said.append) as eager_because:
        assert eager_because is None
    why = "model.visual.merger lies inside, and has a time of its own"
    assert said == [f"model.visual of tiny runs eagerly beside the graphs: {why}"]


def test_old_conditions_read_as_eager_and_engines_do_not_meet():
    old = Conditions.from_json(CONDITIONS)
    assert old.engine == "eager"
    graph = replace(old, engine="graph")
    with pytest.raises(UnlikeConditions, match=r"engine: eager != graph$"):
        old.require_comparable(graph)
    assert graph.fingerprint != old.fingerprint
    assert Conditions.from_json(asdict(graph)) == graph


def trial_of(zoo, phase, **options):
    runner = TrialRunner(
        model=zoo.model,
        processor=None,
        quality=None,
        full=Setting(),
        max_new_tokens=3,
        clock=clock_for(zoo.model.device),
        seed=0,
        keep=lambda _: None,
        anchor_every_s=1e9,
        **options,
    )
    return runner.run(phase, 0, BatchRequest(batch=zoo.batch, id="one"), [Setting()])


def test_what_a_capturing_call_took_is_not_recorded(zoo):
    with graphed(zoo.model) as engine:
        (execution,) = trial_of(zoo, "train").executions
        assert engine.last.captured == 0  # the second of two calls
        assert len(engine.kept) == 2
    assert execution.invalid is None
    assert "the engine captured" not in (execution.disturbed or "")


def test_an_execution_that_fell_back_is_invalid_in_a_run_of_graphs(zoo):
    hook = zoo.model.model.language_model.layers[0].register_forward_hook(lambda *_: None)
    with graphed(zoo.model):
        (execution,) = trial_of(zoo, "train").executions
        (warm,) = trial_of(zoo, "warmup").executions
    hook.remove()
    assert execution.invalid == "the engine 'graph' fell back: a forward hook on layers.0 would not run"
    assert warm.invalid is None
