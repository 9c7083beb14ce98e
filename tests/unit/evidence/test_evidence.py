"""Evidence: takes everything that was executed, refits as it grows, and follows from its answers alone."""

import numpy as np
import pytest

from chronostat.evidence.evidence import Answers
from stand_ins.control_fixtures import (
    DEEP,
    FINE,
    LATENCIES,
    QUALITIES,
    SPACE,
    answers,
    differing,
    known,
    make_evidence,
    observation,
)

EVERYTHING = np.arange(len(SPACE))


def test_the_same_answers_in_the_same_order_are_the_same_knowledge_bit_for_bit():
    first, second, other = make_evidence(9), make_evidence(9), make_evidence(10)
    assert first.version == second.version
    assert np.array_equal(first.order(), second.order())
    assert differing(known(first), known(second)) == []
    assert differing(known(first), known(other))


def test_it_tells_kinds_of_request_apart():
    evidence, rng = make_evidence(20), np.random.default_rng(0)
    evidence.fit()
    for kind in (FINE, DEEP):
        seen = evidence.features(observation(kind, rng).prompt[None])
        assert (seen @ evidence.quality.mean())[0] == pytest.approx(QUALITIES[kind], abs=0.15)
    assert evidence.forecast().mean(evidence.prompts, evidence.tokens).mean(axis=0) == pytest.approx(
        LATENCIES, rel=0.12
    )


def test_it_is_fitted_anew_whenever_there_is_a_quarter_more():
    evidence, rng = make_evidence(0), np.random.default_rng(0)
    versions = [0]
    for _ in range(12):
        evidence.add(observation(0, rng), answers(0, EVERYTHING[:2], rng))
        versions.append(evidence.version)
    # 4 numbers each: at 4, then from 5 on at 8, from 10 at 12, from 15 at 16, from 20 at 20, from 25 at 28, 35: 36, 45
    assert [4 * (i + 1) for i, each in enumerate(np.diff(versions)) if each] == [4, 8, 12, 16, 20, 28, 36, 48]
    assert evidence.version == 8


def test_what_has_no_quality_or_no_latency_teaches_the_other():
    evidence, rng = make_evidence(0), np.random.default_rng(0)
    nothing = np.full(3, np.nan)
    evidence.add(
        observation(0, rng),
        Answers(settings=EVERYTHING[:3], quality=np.array([1.0, np.nan, 0.5]), latency=np.array([1.0, 0.8, np.nan])),
    )
    assert (evidence.quality.count, evidence.latency.count) == (2, 2)
    evidence.add(observation(0, rng), Answers(settings=EVERYTHING[:3], quality=nothing, latency=LATENCIES[:3]))
    assert (evidence.quality.count, evidence.latency.count) == (2, 5)
    evidence.add(observation(0, rng), Answers(settings=EVERYTHING[:3], quality=np.ones(3), latency=nothing))
    assert (evidence.quality.count, evidence.latency.count) == (5, 5)
    evidence.update()
    assert np.isfinite(evidence.forecast().base).all()


def test_an_answer_counts_from_the_next_update_on():
    evidence, rng = make_evidence(8), np.random.default_rng(0)
    evidence.fit()
    before, version = evidence.quality.mean(), evidence.version
    evidence.add(observation(0, rng), answers(0, EVERYTHING, rng))
    assert np.array_equal(evidence.quality.mean(), before)
    evidence.update()
    assert not np.array_equal(evidence.quality.mean(), before)
    assert evidence.version == version


def test_what_is_drawn_from_it_is_its_versions_own():
    evidence = make_evidence(4)
    first, again = evidence.rng().random(), evidence.rng().random()
    evidence.fit()
    assert first == again != evidence.rng().random()


def test_the_mean_latency_of_good_choices_becomes_known():
    few, many = make_evidence(3), make_evidence(30)
    for evidence in (few, many):
        evidence.fit()
    assert 0 < many.mean_deviation() < few.mean_deviation() < 0.1


def test_that_requests_are_a_sample_is_part_of_what_is_not_known():
    """What is known without fail of requests of two lengths still depends on how many of each will come."""
    evidence, rng = make_evidence(0), np.random.default_rng(0)
    for i in range(200):
        evidence.add(observation(i % 2, rng), answers(i % 2, EVERYTHING, rng))
    evidence.fit()
    latency = evidence.forecast().mean(evidence.prompts, evidence.tokens)
    chosen = (evidence.prompts @ evidence.quality.mean() - latency).argmax(axis=1)
    taken = latency[np.arange(len(chosen)), chosen]
    of_sample = taken.std() / taken.mean() / len(taken) ** 0.5
    of_forecast = evidence.latency.deviation(evidence.prompts, evidence.tokens, chosen, taken)
    assert of_sample > of_forecast > 0
    assert evidence.mean_deviation() == pytest.approx((of_sample**2 + of_forecast**2) ** 0.5)
