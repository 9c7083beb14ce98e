"""Scores of answers."""

import pytest

from chronostat.data.quality import QUALITIES, exact, quality_by_name, vqa
from chronostat.errors import ConfigError


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (10, 1.0)])
def test_vqa_is_the_mean_over_leaving_one_out(matches, score):
    references = ["cat"] * matches + ["dog"] * (10 - matches)
    # of n matches a matching reference sees n - 1 others, the rest see n: n * min((n - 1) / 3, 1) + (10 - n) * ...
    assert vqa("cat", references) == pytest.approx(score)


def test_vqa_folds_case_punctuation_and_articles():
    assert vqa("The  Cat!", ["a cat"] * 4) == 1
    assert vqa("cat", ["cats"] * 4) == 0


def test_an_article_can_be_the_answer():
    assert vqa("A", ["a"] * 4) == 1
    assert vqa("", ["a"] * 4) == 0
    assert vqa("the", ["a"] * 4) == 0


def test_a_single_reference_is_compared_itself():
    assert vqa("cat", ["cat"]) == 1
    assert vqa("cat", ["dog"]) == 0


def test_exact():
    assert exact(" Red. ", ["blue", "red"]) == 1
    assert exact("red", ["dark red"]) == 0
    assert exact("two  words", ["Two words"]) == 1
    assert exact("1.5", ["15"]) == 0


@pytest.mark.parametrize("name", QUALITIES)
def test_scores_are_between_0_and_1(name):
    for answer in ("", "a", "red", "?!"):
        assert 0 <= quality_by_name(name)(answer, ["red", "blue", "a"]) <= 1


def test_an_unknown_quality_names_the_known():
    with pytest.raises(ConfigError, match="unknown quality 'bleu'; known: exact, vqa"):
        quality_by_name("bleu")
