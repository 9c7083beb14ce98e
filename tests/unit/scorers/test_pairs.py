"""Pairs of answer and reference in several scripts, each with the value that is right, written by hand."""

import json
from pathlib import Path

import pytest

from chronostat.data.quality import QUALITIES, exact, vqa

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text(encoding="utf-8"))


def test_there_are_enough_of_them():
    assert len(PAIRS) >= 200
    assert {tuple(pair[:2]) for pair in PAIRS} >= {("50%", "50"), ("1,000", "1000"), ("", "+"), ("", "?"), ("कि", "की")}


@pytest.mark.parametrize(("answer", "reference", "by_exact", "by_vqa"), PAIRS)
def test_a_pair(answer, reference, by_exact, by_vqa):
    assert exact(answer, [reference]) == by_exact
    assert vqa(answer, [reference] * 10) == by_vqa
    assert (exact(reference, [answer]), vqa(reference, [answer] * 10)) == (by_exact, by_vqa)  # equality has no side


@pytest.mark.parametrize("name", QUALITIES)
@pytest.mark.parametrize("nothing", ["", " ", "\n\t"])
def test_an_empty_answer_is_never_right(name, nothing):
    for reference in ("", " ", "?", "+", "0", "a", "no", "A"):
        assert QUALITIES[name](nothing, [reference] * 4) == 0
