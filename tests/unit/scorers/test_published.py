"""Each scorer beside a published implementation, on answers that make_published.py generated: equal, or explained.

What is explained here stands in docs/data.md.
"""

import json
import re
from pathlib import Path

import pytest

from chronostat.data.quality import QUALITIES

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
EXPLAINED = {  # which answers may be scored otherwise
    "exact": lambda answer, _: answer != answer.strip() or re.search(r"[()]", answer),  # spaces fold, brackets do not
    "vqa": lambda *_: False,
    "anls": lambda *_: False,
    "relaxed": lambda answer, right: answer != answer.strip(' ."!') or "," in answer + right,  # numbers are read so
    "choice": lambda answer, _: not re.search(r"\b[A-D]\b", answer),  # any letter inside a word is taken for a choice
    "yes_no": lambda answer, _: re.search(r"\bnot\b| or ", answer.lower()),  # "not" is no, "yes or no" is yes
    "number": lambda answer, right: ", " in answer or right.isalpha() or answer[:3].isalpha() or "%" in right,
    "contains": lambda *_: False,
    "f1": lambda *_: False,
}
MOST = {"exact": 67, "relaxed": 83, "choice": 5, "yes_no": 34, "number": 18}


def test_every_scorer_is_compared():
    assert set(PUBLISHED) == set(QUALITIES) == set(EXPLAINED)
    for rows in PUBLISHED.values():
        assert len(rows) == 500
        assert 100 < sum(score > 0 for *_, score in rows) < 400


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_scorer_is_equal_to_a_published_one(name):
    differing = [
        (answer, references, score, ours)
        for answer, references, score in PUBLISHED[name]
        if (ours := QUALITIES[name](answer, references)) != pytest.approx(score, abs=1e-5)
    ]
    assert [each for each in differing if not EXPLAINED[name](each[0], each[1][0])] == []
    assert len(differing) <= MOST.get(name, 0)
