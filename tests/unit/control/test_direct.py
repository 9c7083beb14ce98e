"""The direct learner's model of quality."""

import pytest
import torch

from chronostat.control.learners.base import Outcome
from chronostat.control.learners.direct import QualityModel
from stand_ins.control_fixtures import BUDGETS, OBSERVATION_SIZE, SPACE, make_learner, outcome, teach


def model(members=3):
    return QualityModel(SPACE, OBSERVATION_SIZE, members, 8, torch.Generator().manual_seed(0))


def test_predictions_for_chosen_settings_are_those_for_all():
    quality = model()
    seen = torch.rand(3, 5, OBSERVATION_SIZE)
    settings = torch.randint(len(SPACE), (3, 5, 4))
    everything = quality(seen)
    assert everything.shape == (3, 5, len(SPACE))
    assert torch.allclose(quality(seen, settings), everything.gather(2, settings), atol=1e-6)


def test_levels_are_ordered_steps():
    # settings in the order of the space: tokens 4, 2, 1 by blocks (), (1,), (1, 2); two steps of each knob
    steps = model().steps + 0.5
    assert steps[0].tolist() == [0, 0, 0, 0]  # full
    assert steps[1].tolist() == [0, 0, 1, 0]  # one level down in blocks
    assert steps[8].tolist() == [1, 1, 1, 1]  # the last levels of both


def test_equal_draws_are_learned_once():
    learner = make_learner("direct")
    learner.learn(
        Outcome(
            observation=torch.zeros(OBSERVATION_SIZE),
            settings=torch.tensor([3, 3, 1, 3]),
            quality=torch.tensor([0.5, 0.5, 1.0, 0.5]),
            latency=torch.tensor([0.4, 0.4, 0.9, 0.4]),
            budget=BUDGETS[0],
        )
    )
    valid = learner._trials["valid"][0]
    assert sorted(learner._trials["settings"][0][valid].tolist()) == [1, 3]


def test_latency_is_what_was_measured_for_the_setting_and_never_predicted():
    learner = make_learner("direct")
    before = learner._limits.latencies.means.clone()
    given = outcome(learner, 0)
    learner.learn(given)
    for setting in range(len(SPACE)):
        measured = given.latency[given.settings == setting]
        old = float(before[setting])
        expected = old + (float(measured[0]) - old) / 17 if len(measured) else old
        assert float(learner._limits.latencies.means[setting]) == pytest.approx(expected)


def test_predictions_tell_good_settings_from_bad_ones():
    learner = make_learner("direct")
    teach(learner, range(300))
    given = [outcome(learner, step) for step in range(1_000, 1_040)]
    with torch.no_grad():
        predicted = torch.cat([learner._quality(o.observation[None]).mean(dim=0)[0][o.settings] for o in given])
    quality = torch.cat([o.quality for o in given])
    assert float(torch.corrcoef(torch.stack([predicted, quality]))[0, 1]) > 0.7
