"""What is known of quality: kinds of request are told apart, and more work is taken to be no worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronostat.evidence.features import at_most
from chronostat.evidence.quality import QualityModel, along, predicted
from chronostat.knobs.space import ActionSpace
from stand_ins.control_fixtures import DEEP, FINE, QUALITIES, SPACE

KINDS = np.array([[1.0, -0.5], [1.0, 0.5]])  # features of both kinds of request
EVERYTHING = np.arange(len(SPACE))
CHAIN = np.triu(np.ones((3, 3), dtype=bool))  # setting 0 is taken to be no better than 1, that no better than 2


def taught(qualities, requests=40, noise=0.05, seed=0):
    """After requests of both kinds under all settings; qualities [2, S]."""
    rng, model = np.random.default_rng(seed), QualityModel(SPACE, 2)
    for i in range(requests):
        model.add(KINDS[i % 2], EVERYTHING, qualities[i % 2] + noise * rng.standard_normal(len(SPACE)))
    model.fit()
    return model


def test_it_knows_what_a_setting_is_worth_to_each_kind():
    model = taught(QUALITIES)
    assert KINDS @ model.mean() == pytest.approx(QUALITIES, abs=0.03)
    assert model.count == 40 * len(SPACE)


def test_what_was_never_executed_follows_from_the_values_of_its_knobs():
    rng, model = np.random.default_rng(0), QualityModel(SPACE, 2)
    some = np.array([0, 1, 3, 5, 6, 7])
    for i in range(60):
        model.add(KINDS[i % 2], some, QUALITIES[i % 2, some] + 0.05 * rng.standard_normal(len(some)))
    model.fit()
    assert KINDS @ model.mean() == pytest.approx(QUALITIES, abs=0.1)


def test_before_there_is_an_answer_every_quality_is_the_middle():
    model = QualityModel(SPACE, 2)
    assert (KINDS @ model.mean()).tolist() == [[0.5] * len(SPACE)] * 2


def test_draws_scatter_around_the_mean_and_less_the_more_is_known():
    scatter = []
    for requests in (4, 60):
        model = taught(QUALITIES, requests)
        draws = KINDS @ model.draws(np.random.default_rng(0), 500)
        assert draws.shape == (500, 2, len(SPACE))
        assert draws.mean(axis=0) == pytest.approx(KINDS @ model.mean(), abs=0.06)
        scatter.append(draws.std(axis=0).mean())
    assert scatter[1] < scatter[0] / 2


def test_answers_of_no_setting_change_nothing():
    model = taught(QUALITIES)
    before = model.mean()
    model.add(KINDS[0], EVERYTHING[:0], np.zeros(0))
    model.update()
    assert np.array_equal(model.mean(), before)


# the order


def test_more_work_is_taken_to_be_no_worse_until_the_evidence_speaks_against_it():
    some = np.random.default_rng(0)
    assert np.array_equal(QualityModel(SPACE, 2).order(KINDS, some), at_most(SPACE))
    assert np.array_equal(taught(QUALITIES).order(KINDS, some), at_most(SPACE))
    fewer_tokens_are_better = np.stack([1.2 - QUALITIES[FINE] * 0.8, QUALITIES[DEEP]])
    order = taught(fewer_tokens_are_better).order(KINDS[:1], some)
    tokens, blocks = np.divmod(EVERYTHING, 3)
    dropped = at_most(SPACE) & (tokens[:, None] > tokens)  # whatever has fewer tokens is better here
    assert not (order & dropped).any()
    assert (order | dropped)[at_most(SPACE)].all()
    assert order[blocks[:, None] >= blocks][tokens[:, None].repeat(9, 1)[blocks[:, None] >= blocks] < 0].all()


def test_one_answer_alone_is_not_enough_to_speak_against_it():
    model = QualityModel(SPACE, 2)
    model.add(KINDS[0], np.array([0, 8]), np.array([0.0, 1.0]))
    model.update()
    assert np.array_equal(model.order(KINDS, np.random.default_rng(0)), at_most(SPACE))


def test_along_by_hand():
    # bounds from below .2 .5 .5, from above .2 .4 .4
    assert along(np.array([0.2, 0.5, 0.4]), CHAIN).tolist() == pytest.approx([0.2, 0.45, 0.45])
    # from below .9 .9 .9, from above .1 .1 .5
    assert along(np.array([0.9, 0.1, 0.5]), CHAIN).tolist() == pytest.approx([0.5, 0.5, 0.7])
    assert along(np.array([0.9, 0.1, 0.5]), np.eye(3, dtype=bool)).tolist() == [0.9, 0.1, 0.5]


def test_predictions_are_of_each_draw_along_the_order():
    by_setting = np.array([[[0.2, 0.5, 0.4], [0.0, 0.0, 0.1]], [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]])
    found = predicted(np.array([[1.0, 0.0], [1.0, 1.0]]), by_setting, CHAIN)
    assert found.shape == (2, 2, 3)
    assert found[0, 0].tolist() == pytest.approx([0.2, 0.45, 0.45])
    assert found[0, 1].tolist() == pytest.approx([0.2, 0.5, 0.5])
    assert found[1, 1].tolist() == pytest.approx([1.0, 2.0, 3.0])


LEVELS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
    lambda counts: ActionSpace({f"knob{k}": tuple(range(count, 0, -1)) for k, count in enumerate(counts)})
)


@settings(max_examples=40)
@given(LEVELS, st.integers(0, 10_000))
def test_along_an_order_quality_never_falls_and_what_did_not_fall_stays(space, seed):
    order, quality = at_most(space), np.random.default_rng(seed).random(len(space))
    found = along(quality, order)
    below, above = np.nonzero(order)
    assert (found[below] <= found[above] + 1e-12).all()
    assert quality.min() <= found.min() <= found.max() <= quality.max()
    assert along(found, order) == pytest.approx(found)


def test_many_requests_are_worked_out_as_each_alone():
    rng = np.random.default_rng(0)
    order = np.triu(rng.random((40, 40)) < 0.2) | np.eye(40, dtype=bool)
    quality = rng.random((2, 700, 40))  # 1,400 x 40 x 40 comparisons take three pieces
    assert np.array_equal(along(quality, order), np.stack([[along(one, order) for one in draw] for draw in quality]))
