"""The kinds of question: how each is worded and what the right answer is.

A kind is one entry of `KINDS`. Its `ask` draws what the question is about from a scene and returns the words that
fill its wordings together with the answer. An answer is one word, or digits written together; the tokenizer has one
token for each word and each digit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from chronostat.data.demo.scenes import SHAPE_RADII_PX, Scene, Shape


class CallArguments(NamedTuple):
    """What a question is about: the words for its blanks, and the answer."""

    words: dict[str, str]
    answer: str


class Question(NamedTuple):
    """A question as it is put to the model."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of question.

    Attributes:
        needs: what an answer takes, for people: "coarse", "fine" (small print), "depth" (steps of reasoning over
            big things) or "both".
        share: its weight in the shipped task.
        wordings: the ways to put it; every word of theirs is in the model's vocabulary.
        unseen_wording: one more way, of words that the wordings use. Training never draws it; the test split ends with
            it, so that a reader sees whether the model knows the words or only the sentences.
        ask: draws one question of this kind about a scene.
    """

    needs: str
    share: float
    wordings: tuple[str, str, str]
    unseen_wording: str
    ask: Callable[[np.random.Generator, Scene], CallArguments]

    def draw(self, rng: np.random.Generator, scene: Scene, *, unseen: bool = False) -> Question:
        """One question about the scene in one of the wordings, or in the one that training never draws."""
        asked = self.ask(rng, scene)
        wording = self.unseen_wording if unseen else self.wordings[int(rng.integers(len(self.wordings)))]
        return Question(prompt=wording.format(**asked.words), answer=asked.answer)


def _a_shape(rng: np.random.Generator, scene: Scene) -> Shape:
    return scene.shapes[int(rng.integers(len(scene.shapes)))]


def _worth(shapes: Iterable[Shape]) -> int:
    return sum(shape.points for shape in shapes)


def _worth_of_size(scene: Scene, size: str) -> int:
    return _worth(shape for shape in scene.shapes if shape.size == size)


def _background(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, scene.background)


def _count(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, str(len(scene.shapes)))


def _size(rng: np.random.Generator, scene: Scene) -> CallArguments:
    shape = _a_shape(rng, scene)
    return CallArguments({"colour": shape.colour}, shape.size)


def _colour(rng: np.random.Generator, scene: Scene) -> CallArguments:
    shape = _a_shape(rng, scene)
    return CallArguments({"shape": shape.name}, shape.colour)


def _points(rng: np.random.Generator, scene: Scene) -> CallArguments:
    shape = _a_shape(rng, scene)
    return CallArguments({"shape": shape.name}, str(shape.points))


def _digit(rng: np.random.Generator, scene: Scene) -> CallArguments:
    digit = scene.digits[int(rng.integers(len(scene.digits)))]
    return CallArguments({"colour": digit.colour}, str(digit.value))


def _read(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, "".join(str(digit.value) for digit in scene.digits))


def _hop(rng: np.random.Generator, scene: Scene) -> CallArguments:
    by_colour = {digit.colour: digit for digit in scene.digits}
    matching = [shape for shape in scene.shapes if shape.colour in by_colour]
    shape = matching[int(rng.integers(len(matching)))]
    return CallArguments({"shape": shape.name}, str(by_colour[shape.colour].value))


def _order(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, "".join(str(points) for points in sorted(shape.points for shape in scene.shapes)))


def _all_worth(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, str(_worth(scene.shapes)))


def _part_worth(rng: np.random.Generator, scene: Scene) -> CallArguments:
    size = str(rng.choice(list(SHAPE_RADII_PX)))
    return CallArguments({"size": size}, str(_worth_of_size(scene, size)))


def _compare(_: np.random.Generator, scene: Scene) -> CallArguments:
    big, small = (_worth_of_size(scene, size) for size in ("big", "small"))
    return CallArguments({}, "same" if big == small else "big" if big > small else "small")


def _gap(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, str(abs(_worth_of_size(scene, "big") - _worth_of_size(scene, "small"))))


def _sum(rng: np.random.Generator, scene: Scene) -> CallArguments:
    one, other = (scene.digits[int(i)] for i in rng.permutation(len(scene.digits))[:2])
    return CallArguments({"one": one.colour, "other": other.colour}, str(one.value + other.value))


def _total(_: np.random.Generator, scene: Scene) -> CallArguments:
    return CallArguments({}, str(sum(digit.value for digit in scene.digits)))


KINDS: dict[str, Kind] = {
    "background": Kind(
        needs="coarse",
        share=0.04,
        wordings=("What colour is the background?", "Name the background.", "What is behind the shapes?"),
        unseen_wording="What colour is behind the shapes?",
        ask=_background,
    ),
    "count": Kind(
        needs="coarse",
        share=0.04,
        wordings=("How many shapes are there?", "Count the shapes.", "What number of shapes is there?"),
        unseen_wording="What is the count of the shapes?",
        ask=_count,
    ),
    "size": Kind(
        needs="coarse",
        share=0.04,
        wordings=("Is the {colour} shape big or small?", "Name the size of {colour}.", "How big is {colour}?"),
        unseen_wording="What size is the {colour} shape?",
        ask=_size,
    ),
    "colour": Kind(
        needs="coarse",
        share=0.04,
        wordings=("What colour is the {shape}?", "Name the colour of the {shape}.", "The {shape} has what colour?"),
        unseen_wording="What is the colour of the {shape}?",
        ask=_colour,
    ),
    "points": Kind(
        needs="coarse",
        share=0.0,
        wordings=("What is the {shape} worth?", "Name the points of the {shape}.", "How many points has the {shape}?"),
        unseen_wording="What points has the {shape}?",
        ask=_points,
    ),
    "digit": Kind(
        needs="fine",
        share=0.16,
        wordings=("What digit is {colour}?", "Name the {colour} digit.", "Read the digit in {colour}."),
        unseen_wording="What is the {colour} digit?",
        ask=_digit,
    ),
    "read": Kind(
        needs="fine",
        share=0.18,
        wordings=("Read the digits from left to right.", "List the digits.", "What are the digits?"),
        unseen_wording="Name the digits from left to right.",
        ask=_read,
    ),
    "hop": Kind(
        needs="fine",
        share=0.10,
        wordings=(
            "What digit has the colour of the {shape}?",
            "Read the digit coloured as the {shape}.",
            "Name the digit as the {shape}.",
        ),
        unseen_wording="What digit is coloured as the {shape}?",
        ask=_hop,
    ),
    "order": Kind(
        needs="depth",
        share=0.05,
        wordings=("List the points from low to high.", "Order the points.", "List points of shapes in order."),
        unseen_wording="Order the points from low to high.",
        ask=_order,
    ),
    "worth": Kind(
        needs="depth",
        share=0.06,
        wordings=("What are the shapes worth?", "How many points in total?", "Add the points of all shapes."),
        unseen_wording="What are all shapes worth in total?",
        ask=_all_worth,
    ),
    "part": Kind(
        needs="depth",
        share=0.05,
        wordings=(
            "What are the {size} shapes worth?",
            "How many points have the {size} shapes?",
            "Add the points of {size} shapes.",
        ),
        unseen_wording="What are all {size} shapes worth?",
        ask=_part_worth,
    ),
    "compare": Kind(
        needs="depth",
        share=0.04,
        wordings=("Which are worth more, big or small?", "Are big or small worth more?", "What size has more points?"),
        unseen_wording="Which size is worth more?",
        ask=_compare,
    ),
    "gap": Kind(
        needs="depth",
        share=0.08,
        wordings=("How far apart are big and small?", "Big less small is what?", "What is between big and small?"),
        unseen_wording="How far is big from small?",
        ask=_gap,
    ),
    "sum": Kind(
        needs="both",
        share=0.05,
        wordings=("Add {one} and {other} digits.", "What is {one} and {other}?", "Digits {one} and {other} in total?"),
        unseen_wording="What is the total of {one} and {other}?",
        ask=_sum,
    ),
    "total": Kind(
        needs="both",
        share=0.07,
        wordings=("Add all digits.", "What is the total of the digits?", "All digits in total?"),
        unseen_wording="What are all digits in total?",
        ask=_total,
    ),
}
"""Every kind by its name. A share of 0 means: taught, because others build on it, but not asked in the task."""
