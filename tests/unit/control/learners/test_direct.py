"""The direct learner: Thompson's draws at the price of a budget."""

import numpy as np
import pytest

from chronostat.evidence.quality import predicted
from chronostat.policy.frontier import best
from chronostat.records import Budget
from stand_ins.control_fixtures import BUDGETS, DEEP, FINE, LATENCIES, SPACE, make_pupil, observation


def seen_of(kind=FINE):
    return observation(kind, np.random.default_rng(0))


def propose(pupil, budget, draws=4, seen=None):
    return pupil.learner.propose(seen or seen_of(), budget, draws, np.random.default_rng(1))


def test_each_draw_follows_one_view_of_what_may_be_true_and_its_probability_is_their_share():
    pupil = make_pupil("direct", ("direct", "members", 8))
    learner, budget, seen = pupil.learner, BUDGETS[2], seen_of()
    prompt = pupil.evidence.features(seen.prompt[None])
    scores = predicted(prompt, learner._draws, learner._order)[:, 0]
    assert scores.shape == (8, len(SPACE))
    latency = learner._forecast.mean(prompt, seen.tokens[None])
    price = learner._frontier.prices[learner._frontier.point(budget.fraction, 0.5)]
    chosen = best(scores, latency, float(price), latency)
    proposal = propose(pupil, budget, 4_000, seen)
    shares = np.bincount(chosen, minlength=len(SPACE)) / 8
    assert proposal.probabilities.tolist() == shares[proposal.settings].tolist()
    drawn = np.bincount(proposal.settings, minlength=len(SPACE)) / 4_000
    assert drawn == pytest.approx(shares, abs=0.03)  # 4 standard errors of a share


def test_what_may_be_true_is_drawn_anew_every_eighth_outcome_and_whenever_there_is_a_quarter_more():
    pupil = make_pupil("direct")
    for _ in range(5):
        pupil.evidence.fit()  # it is fitted less often from now on
    pupil.learner._renew()
    versions = []
    for step in range(24):
        versions.append(propose(pupil, BUDGETS[0]).version)
        fitted = pupil.evidence.version
        pupil.teach(range(step, step + 1))
        renewed = propose(pupil, BUDGETS[0]).version > versions[-1]
        assert renewed == (pupil.evidence.version > fitted or step % 8 == 7)
    assert versions[0] == 1
    assert versions[-1] >= 3


def test_the_first_version_is_0():
    assert propose(make_pupil("direct"), BUDGETS[0]).version == 0


def test_prices_are_found_anew_only_where_strengths_were_fitted():
    pupil = make_pupil("direct")
    pupil.evidence.fit()
    pupil.learner._renew()
    frontier, draws = pupil.learner._frontier, pupil.learner._draws
    pupil.learner._renew()
    assert pupil.learner._frontier is frontier
    assert not np.array_equal(pupil.learner._draws, draws)


def test_a_looser_budget_proposes_what_takes_longer():
    pupil = make_pupil("direct")
    pupil.teach(range(40))
    for kind in ("mean", "deadline"):
        cost = [
            np.mean([LATENCIES[propose(pupil, Budget(kind=kind, fraction=f), 32, seen_of(k)).settings] for k in (0, 1)])
            for f in (0.25, 0.5, 0.75)
        ]
        assert cost[0] < cost[1] < cost[2]


def test_predictions_tell_good_settings_from_bad_ones():
    pupil = make_pupil("direct")
    pupil.teach(range(60))
    pupil.learner.finish()
    rng = np.random.default_rng(5)
    for kind, setting in ((FINE, 2), (DEEP, 6)):
        prompts = np.stack([observation(kind, rng).prompt for _ in range(20)])
        scores = pupil.learner.scorer().scores(pupil.evidence.features(prompts), BUDGETS[0])
        assert scores[:, setting].mean() > 0.85  # all that the kind needs
        assert scores[:, 8 - setting].mean() < 0.45  # all but that: a quarter of the tokens, no blocks


def test_learning_tells_how_many_answers_are_known():
    pupil = make_pupil("direct")
    before = pupil.evidence.quality.count
    outcome = pupil.outcome(0)
    distinct = len(set(outcome.settings.tolist()))
    assert pupil.learner.learn(outcome) == {"answers": float(before + distinct)}
