"""At which budgets the learned policy is played."""

import numpy as np
import pytest

from chronostat.config import Config, overridden
from chronostat.control.learners import LEARNERS
from chronostat.evidence.evidence import Answers, Evidence
from chronostat.evidence.observation import Observation
from chronostat.knobs.space import ActionSpace
from chronostat.policy.policy import Policy
from chronostat.policy.scorers import QualityScorer
from chronostat.records import Budget
from chronostat.runs.training import policy_of
from stand_ins.made_up_policy import made_up

SPACE = ActionSpace({"vision_tokens": [272, 16]})
TOKENS = np.array([[272.0, 9.0], [16.0, 9.0]])


def taught():
    """Half of the prompts need full (latency 1), the others are answered under the cheap setting (0.2) as well."""
    rng = np.random.default_rng(0)
    seen = [Observation(prompt=np.eye(4)[i % 4] + 0.0, tokens=TOKENS) for i in range(80)]
    evidence = Evidence(SPACE, seen, 0)
    for i, observation in enumerate(seen):
        quality = np.array([1.0, float(i % 2)])
        latency = np.array([1.0, 0.2]) * np.exp(0.01 * rng.standard_normal(2))
        evidence.add(observation, Answers(settings=np.arange(2), quality=quality, latency=latency))
    evidence.fit()
    return evidence


@pytest.fixture(scope="module")
def policy():
    """Of a learner that was told."""
    evidence = taught()
    budgets = [Budget(kind=kind, fraction=fraction) for kind in ("mean", "deadline") for fraction in (0.3, 0.6)]
    learner = LEARNERS["direct"](SPACE, evidence, Config(), budgets, 0)
    return policy_of(Config(), evidence, learner, np.ones(2, dtype=np.bool_))


def test_between_two_settings_the_learned_policy_is_compared_with_their_mix(policy):
    # at 0.55 the mix is right for 0.5 + 0.5 * (0.55 - 0.2) / 0.8 = 0.72 of the requests, who looks at them for 0.94
    assert policy.gains["mean"].is_learned(0.55)
    assert policy.gains["mean"].is_learned(0.35)
    gains = policy.gains["mean"]
    at = int(np.searchsorted(gains.fractions, 0.55)) - 1
    fraction = gains.fractions[at]
    assert gains.least[at] == pytest.approx(0.5 * (fraction - 0.2) / 0.8, abs=0.06)


def test_what_is_gained_at_least_is_the_5_percent_quantile_of_what_may_be_true():
    """Two cheap settings take as long; 100 draws say by how much the learned one is better: -0.5 to 0.49."""
    base = made_up(np.array([0.9, 0.7, 0.2]), np.array([1.0, 0.5, 0.5]))
    learned = QualityScorer(by_setting=np.array([[0.9, 0.2, 0.7]]), order=np.eye(3, dtype=np.bool_))
    draws = np.tile([0.9, 0.5, 0.5], (100, 1, 1))
    draws[:, 0, 2] += np.arange(100) / 100 - 0.5
    policy = Policy.of(
        base.learner,
        base.features,
        {**base.scorers, "learned": learned},
        base.forecast,
        base.requests,
        draws,
        base.legal,
        base.margin,
    )
    # 4.95 of 100 draws lie below
    assert policy.gains["mean"].least[0] == pytest.approx(-0.5 + 0.0495)
    assert policy.gains["deadline"].least[0] == pytest.approx(-0.5 + 0.0495)


def test_the_margin_is_what_the_evidence_needs_and_no_more_than_was_asked_for():
    evidence = taught()
    needed = evidence.mean_deviation()
    for asked, margin in ((0.5, needed), (needed / 2, needed / 2)):
        config = overridden(Config(), (f"reward.margin={asked}",))
        assert policy_of(config, evidence, None, np.ones(2, dtype=np.bool_)).margin == pytest.approx(margin)
