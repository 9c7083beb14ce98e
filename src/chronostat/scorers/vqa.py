"""VQA accuracy with the folding of VQA v2: punctuation, numbers, articles, contractions."""

import re
from collections.abc import Iterator, Sequence
from functools import cache

from chronostat.scorers.folding import without_outer

# in the order in which they are folded; other signs, such as %, $ and &, count
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_ARTICLES = frozenset({"a", "an", "the"})
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
# written whole; the evaluation knows each of them without one of its apostrophes as well
_CONTRACTIONS = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
    """,
)


def vqa(answer: str, references: Sequence[str]) -> float:
    """Leave-one-out VQA accuracy (Antol et al. 2015; the evaluation of VQA v2).

    For each of the n reference answers, the other n - 1 are compared with the answer and give min(matches / 3, 1); the
    score is the mean. With ten references 0, 1, 2, 3 and 4 or more matches give 0, 0.3, 0.6, 0.9 and 1. A single
    reference has no others, so it is compared itself.
    """
    said = folded(answer)
    matches = [bool(said) and said == folded(reference) for reference in references]
    if len(matches) == 1:
        return float(matches[0])
    others = (sum(matches) - match for match in matches)
    return sum(min(count / 3, 1.0) for count in others) / len(matches)


def folded(text: str) -> str:
    """An answer as VQA v2 compares it, without outer punctuation of whatever script; never empty but of nothing."""
    lower = without_outer(text)
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(lower).split()]
    kept = [_whole_contractions().get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(kept) or " ".join(words) or lower  # "a" may be the answer to "which letter?"


def _without_punctuation(text: str) -> str:
    """A sign beside a space goes, one between letters becomes a space; in a text with 1,000 every sign goes."""
    thousands = _THOUSANDS.search(text) is not None
    out = text
    for sign in _PUNCTUATION:
        outer = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if outer or thousands else " ")
    return _PERIOD.sub("", out)


@cache
def _whole_contractions() -> dict[str, str]:
    """By each spelling that lacks an apostrophe: ``dont``, ``couldnt've``."""
    return {short: whole for whole in _CONTRACTIONS for short in _shortened(whole)}


def _shortened(whole: str) -> Iterator[str]:
    for place, char in enumerate(whole):
        if char == "'":
            yield whole[:place] + whole[place + 1 :]
