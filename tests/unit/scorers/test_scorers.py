"""Scores by name: what is right, what is near, and what is never guessed."""

from dataclasses import replace

import pytest

from chronostat.data.quality import quality_by_name, score
from chronostat.data.samples import Sample
from chronostat.errors import ConfigError
from chronostat.scorers.choices import choice, yes_no
from chronostat.scorers.numbers import number, relaxed
from chronostat.scorers.texts import anls, contains, f1

OPTIONS = ("a dog", "a cat", "a black cat", "None of the above")


@pytest.mark.parametrize(
    ("answer", "references", "value"),
    [
        ("hello", ["hello"], 1.0),
        ("hallo", ["hello"], 1 - 1 / 5),
        ("help", ["hello"], 1 - 2 / 5),  # two edits of five letters
        ("ha", ["hello"], 0.0),  # 1 - 4 / 5 is below one half
        ("Hello  World", ["hello world"], 1.0),
        ("x", ["hello", "x"], 1.0),
        ("ab", ["abcd"], 0.0),  # 1 - 2 / 4 is not above one half
    ],
)
def test_anls(answer, references, value):
    assert anls(answer, references) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        *(("105", "100", 1), ("95", "100", 1), ("105.1", "100", 0), ("94.9", "100", 0)),
        *(("-95", "-100", 1), ("95", "-100", 0), ("0", "0", 1), ("0.01", "0", 0), ("50%", "0.5", 1), ("50", "0.5", 0)),
        *(("1,000", "1000", 1), ("1040", "1,000", 1), ("Asia.", "asia", 1), ("Asia", "Africa", 0), ("100", "one", 0)),
        *(("about 100", "100", 0), ("\u0665\u0660", "50", 1), ("\u2212 5", "5", 0), ("\u22125", "-5", 1)),
    ],
)
def test_relaxed(answer, reference, value):
    assert relaxed(answer, [reference]) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        *(("There are 3 dogs.", "3", 1), ("three", "3", 1), ("3.0", "3", 1), ("3 or 4", "3", 0), ("3, yes 3", "3", 1)),
        *(("1,234", "1234", 1), ("12", "1", 0), ("-3", "3", 0), ("no number", "3", 0), ("3", "no number", 0)),
        *(("x3", "3", 0), ("1e3", "1000", 1), ("३", "3", 1), ("$5", "5 dollars", 1)),
        *(("1000001", "1000000", 0), ("0.3333333333333", "0.33333333333333", 1)),  # as many digits as count
    ],
)
def test_number(answer, reference, value):
    assert number(answer, [reference]) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *(("B", 1), ("b.", 1), ("(B)", 1), ("B) a cat", 1), ("B: a cat", 1), ("[b]", 1)),
        *(
            ("The answer is B.", 1),
            ("Answer: (B)", 1),
            ("option b", 1),
            ("a cat", 1),
            ("A cat.", 1),
            ("It is a cat.", 1),
        ),
        *(("A", 0), ("C", 0), ("a black cat", 0), ("a dog", 0), ("a dog and a cat", 0), ("cat", 0), ("E", 0)),
        *(("The answer is A or the answer is B", 0), ("I do not know", 0), ("Because", 0), ("A cat or a dog", 0)),
        *(("B, A", 0), ("(B) or (A)", 0), ("The answer is B or A", 0), ("B, maybe A.", 0), ("B. a dog", 0)),
        *(("It is not a cat.", 0), ("It isn't a cat", 0), ("(B) is not right", 0), ("a cat is wrong", 0)),
        *(("B. The dog is not there", 1), ("B because it is not a dog", 0), ("No, it is a cat", 1)),
        *(("a cat because it is not blue", 1), ("It is not blue. It is a cat", 1)),
    ],
)
def test_choice(answer, value):
    assert choice(answer, ["B"], OPTIONS) == value
    assert choice(answer, ["a cat"], OPTIONS) == value


@pytest.mark.parametrize(
    ("answer", "options", "value"),
    [
        *(
            ("B", ("B", "A"), 1),
            ("A", ("B", "A"), 0),
            ("b", ("C", "D"), 1),
            ("D", ("C", "D"), 1),
        ),  # letters are letters
        *(("a cat or a black cat", ("black cat", "cat"), 0), ("a black cat", ("black cat", "cat"), 0)),
        *(("B. both A and C", ("A", "both A and C", "C"), 1), ("It is not raining", ("dry", "not raining"), 1)),
        *(("The answer is 3.", ("2", "3"), 1), ("2 or 3", ("2", "3"), 0)),
    ],
)
def test_choice_between_options_that_look_alike(answer, options, value):
    assert choice(answer, ["B"], options) == value


def test_choice_without_options():
    assert choice("B", ["B"]) == choice("(b)", ["B"]) == choice("The answer is b", ["B"]) == 1
    assert choice("A", ["B"]) == choice("no", ["B"]) == 0
    assert choice("it is a cat", ["a cat"]) == 1
    assert choice("none of them: a dog", ["A"]) == 0


def test_a_sample_tells_the_scorer_of_choices_its_options():
    sample = Sample(
        id="a", split="test", prompt="?", references=("B",), load_images=tuple, options=OPTIONS, kind="pets"
    )
    assert score(quality_by_name("choice"), "a cat", sample) == 1
    assert score(quality_by_name("exact"), "a cat", sample) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        *(("Yes", "yes", 1), ("Yes.", "yes", 1), ("yes, there is a dog", "yes", 1), ("No", "yes", 0)),
        *(
            ("yes or no", "yes", 0),
            ("there is", "yes", 0),
            ("not", "no", 0),
            ("NO!", "No.", 1),
            ("yesterday", "yes", 0),
        ),
    ],
)
def test_yes_no(answer, reference, value):
    assert yes_no(answer, [reference]) == value


def test_contains():
    assert contains("It says STOP here", ["stop"]) == contains("a  b", ["a b"]) == contains("x y", ["z", "y"]) == 1
    assert contains("It says", ["stop"]) == contains("anything", [""]) == contains("anything", [" "]) == 0


def test_f1():
    assert f1("the red dog", ["a red dog"]) == 1
    assert f1("red dog", ["red cat"]) == pytest.approx(0.5)  # one of two words, both ways
    assert f1("red", ["red cat"]) == pytest.approx(2 / 3)  # precision 1, recall 1 / 2
    assert f1("blue", ["red cat", "blue"]) == 1
    assert f1("blue", ["red"]) == 0


def half(answer, references):
    return 0.5


def as_asked(answer, references):
    """What the first reference says."""
    return {"2": 2, "-0.1": -0.1, "None": None, "'1'": "1", "nan": float("nan")}[references[0]]


def test_a_function_of_ones_own(demo_sample):
    assert score(quality_by_name("unit.scorers.test_scorers:half"), "x", demo_sample) == 0.5


@pytest.mark.parametrize("given", ["2", "-0.1", "None", "'1'", "nan"])
def test_a_function_that_gives_no_number_from_0_to_1(demo_sample, given):
    with pytest.raises(ConfigError, match=f"the quality of 'x' is {given}; a quality is a number from 0 to 1"):
        score(as_asked, "x", replace(demo_sample, references=(given,)))


@pytest.mark.parametrize(
    "name", ["no_such_module:f", "math:no_such_function", ":f", "math:pi", ".x:f", "slip_of_a_pen:f"]
)
def test_a_function_that_is_none(name, tmp_path, monkeypatch):
    (tmp_path / "slip_of_a_pen.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"data.quality = '{name}' (cannot be imported|is no function)"):
        quality_by_name(name)
