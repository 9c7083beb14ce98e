"""The action space."""

import numpy as np
import pytest
from torch import nn

from chronostat.control.learners import LEARNERS
from chronostat.control.learners.base import Outcome
from chronostat.errors import KnobError
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.evidence.observation import Observation
from chronostat.knobs.registry import find_space
from chronostat.knobs.space import ActionSpace, pruning
from chronostat.records import Budget, Setting
from stand_ins.control_fixtures import config_of, frozen
from stand_ins.molmo_like import molmo_like

SPACE = ActionSpace({"vision_tokens": (272, 16), "block_skip": ((), (3, 4), (2, 3, 4, 5))})


def test_it_is_the_product_with_full_first():
    assert len(SPACE) == 6
    assert SPACE.full == SPACE.settings[0] == Setting(vision_tokens=272, block_skip=())
    assert SPACE.settings[-1] == Setting(vision_tokens=16, block_skip=(2, 3, 4, 5))
    assert SPACE.level_indices == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))


def test_the_order_of_the_knobs_in_a_setting_does_not_matter():
    assert SPACE.index(Setting(block_skip=(3, 4), vision_tokens=16)) == 4


@pytest.mark.parametrize("setting", [Setting(), Setting(vision_tokens=80, block_skip=()), Setting(vision_tokens=272)])
def test_a_setting_outside_is_refused_with_the_legal_values(setting):
    with pytest.raises(
        KnobError, match=r"not in the action space; legal values are vision_tokens: 272, 16; block_skip"
    ):
        SPACE.index(setting)


@pytest.mark.parametrize("values", [(), (4, 4)])
def test_values_are_distinct(values):
    with pytest.raises(KnobError, match="knob moe_topk needs distinct values, full first; got"):
        ActionSpace({"moe_topk": values})


LEVELS = {"vision_tokens": (4, 1), "block_skip": ((), (1,), (1, 2))}
PRUNED = {
    "vision_tokens=1 block_skip=1,": "too few",
    "vision_tokens=1 block_skip=1,2": "does the same as vision_tokens=4 block_skip=1,2",
}


def test_a_pruned_space_holds_what_is_left_in_the_order_of_the_product():
    space = ActionSpace(LEVELS, PRUNED)
    assert space.level_indices == ((0, 0), (0, 1), (0, 2), (1, 0))
    assert [str(setting) for setting in space.settings] == [
        "vision_tokens=4 block_skip=-",
        "vision_tokens=4 block_skip=1,",
        "vision_tokens=4 block_skip=1,2",
        "vision_tokens=1 block_skip=-",
    ]
    assert [space.index(setting) for setting in space.settings] == [0, 1, 2, 3]
    with pytest.raises(KnobError, match="block_skip=1, vision_tokens=1 is not in the action space: too few"):
        space.index(Setting(block_skip=(1,), vision_tokens=1))


def test_full_cannot_be_pruned():
    with pytest.raises(KnobError, match=r"vision_tokens=4 block_skip=- is full, which cannot be pruned: because"):
        ActionSpace(LEVELS, {"vision_tokens=4 block_skip=-": "because"})


def test_illegal_combinations_are_pruned_and_of_equal_ones_the_first_stays():
    def objection(setting):
        return "below one token" if setting["vision_tokens"] == 1 and setting["block_skip"] == (1,) else None

    def effect(setting):
        return None if setting["block_skip"] == (1, 2) else setting

    assert pruning(LEVELS, objection, effect) == {
        "vision_tokens=1 block_skip=1,": "below one token",
        "vision_tokens=1 block_skip=1,2": "does the same as vision_tokens=4 block_skip=1,2",
    }


def test_values_that_change_only_skipped_blocks_are_pruned():
    model = molmo_like()
    for block in model.model.transformer["blocks"][:2]:
        block.mlp = nn.Linear(16, 16)  # blocks 2 and 3 have experts
    levels = {"moe_topk": ((2, 1), 1), "block_skip": ((3,), (2, 3))}
    space, _ = find_space(model, None, levels)
    assert space.levels == {"moe_topk": (2, (2, 1), 1), "block_skip": ((), (3,), (2, 3))}
    assert space.pruned == {
        "moe_topk=2,1 block_skip=3,": "does the same as moe_topk=2 block_skip=3,",
        "moe_topk=2,1 block_skip=2,3": "does the same as moe_topk=2 block_skip=2,3",
        "moe_topk=1 block_skip=2,3": "does the same as moe_topk=2 block_skip=2,3",
    }
    assert len(space) == 3 * 3 - 3


@pytest.mark.parametrize(
    ("values", "option"),
    [({"moe_topk": (1,)}, {"moe_keep_first": True}), ({"block_skip": ((1,),)}, {"block_order": (0, 1, 2, 3)})],
)
def test_an_option_that_nothing_would_read_is_refused(values, option):
    (knob,), (name,) = values, option
    find_space(molmo_like(), None, {**values, name: None})
    with pytest.raises(KnobError, match=f"knobs.{knob} names the values to offer, so knobs.{name} would change noth"):
        find_space(molmo_like(), None, {**values, **option})


def test_a_value_without_any_combination_left_is_none():
    space, _ = find_space(molmo_like(), None, {"moe_topk": ((2, 2, 2, 2), 1), "block_skip": ((1,),)})
    assert space.levels["moe_topk"] == (2, 1)
    assert space.level_indices == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert space.pruned["moe_topk=2,2,2,2 block_skip=-"] == "does the same as moe_topk=2 block_skip=-"


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_works_on_a_pruned_space(name):
    space = ActionSpace(LEVELS, PRUNED)
    rng, latencies = np.random.default_rng(0), np.array([1.0, 0.8, 0.6, 0.5])
    seen = [Observation(prompt=rng.standard_normal(3), tokens=np.full((4, 2), 9.0)) for _ in range(10)]
    evidence = Evidence(space, seen, 0)
    for observation in seen[:3]:
        evidence.add(observation, Answers(settings=np.arange(4), quality=latencies, latency=latencies))
    budgets = [Budget(kind=kind, fraction=f) for kind in ("mean", "deadline") for f in (0.6, 0.9)]
    learner = LEARNERS[name](space, evidence, config_of(name), budgets, 0)
    for observation, budget in zip(seen, budgets * 2, strict=False):
        proposal = learner.propose(observation, budget, 4, rng)
        assert set(proposal.settings.tolist()) <= {0, 1, 2, 3}
        learner.learn(
            Outcome(
                observation=observation,
                settings=proposal.settings,
                probabilities=proposal.probabilities,
                quality=latencies[proposal.settings],
                latency=latencies[proposal.settings],
                budget=budget,
            )
        )
    learner.finish()
    policy = frozen(name, evidence, learner, np.ones(4, dtype=bool))
    assert policy.decide(seen[0], budgets[0], 0.5) in {0, 1, 2, 3}
