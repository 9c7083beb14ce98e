"""Writes published.json: generated answers with the score of a published implementation of each scorer.

Run where lmms-eval 0.7.3, anls 0.0.2 and torchmetrics are installed: ``python -m unit.scorers.make_published``
in ``tests/``.
"""

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

FILE = Path(__file__).parent / "published.json"
ANSWERS = 500
WORDS = (
    "red",
    "blue",
    "dog",
    "cat",
    "left",
    "a tree",
    "the car",
    "stop sign",
    "New York",
    "isn't there",
    "U.S.",
    "t-shirt",
)
NUMBERS = ("0", "1", "2", "7", "12", "40", "100", "3.5", "0.25", "1,200", "12,345", "50%", "7.5%", "-3", "two", "ten")
WRONG = ("something else", "", "I do not know", "green", "99", "unknown")
SENTENCES = ("{}", "{}.", " {} ", "It is {}.", "{}!", "The answer is {}", "{}, I think", '"{}"', "({})")


def said(rng: random.Random, right: str, others: Sequence[str]) -> str:
    """An answer as models give it: right, nearly right, or another one, in different dress."""
    text = right if rng.random() < 0.6 else rng.choice([*others, *WRONG])
    text = rng.choice(SENTENCES).format(text)
    if rng.random() < 0.25:
        text = rng.choice([str.upper, str.capitalize, str.title])(text)
    if rng.random() < 0.15 and len(text) > 3:  # a letter is lost
        place = rng.randrange(len(text))
        text = text[:place] + text[place + 1 :]
    return text


def of_words(rng: random.Random) -> tuple[str, list[str]]:
    references = rng.sample(WORDS, rng.choice([1, 1, 2, 3]))
    return said(rng, references[0], WORDS), references


def of_ten(rng: random.Random) -> tuple[str, list[str]]:
    few = rng.sample([*WORDS, *NUMBERS], 3)
    references = [rng.choice(few) for _ in range(10)]
    return said(rng, rng.choice(few), [*WORDS, *NUMBERS]), references


def of_numbers(rng: random.Random) -> tuple[str, list[str]]:
    right = rng.choice(NUMBERS)
    if rng.random() < 0.3 and right[-1].isdigit():  # near it
        value = float(right.replace(",", "")) * rng.choice([0.94, 0.96, 1.04, 1.06])
        return f"{value:g}", [right]
    return said(rng, right, NUMBERS), [right]


def of_letters(rng: random.Random) -> tuple[str, list[str]]:
    letter = rng.choice("ABCD")
    dress = (
        "{}",
        "{}.",
        "({})",
        "{})",
        "{}: a dog",
        "The answer is {}.",
        "Answer: {}",
        "I choose {}",
        "the answer is ({})",
    )
    other = rng.choice([*"ABCD", "none of them", "E", ""])
    return rng.choice(dress).format(letter if rng.random() < 0.6 else other), [letter]


def of_yes_no(rng: random.Random) -> tuple[str, list[str]]:
    right = rng.choice(["yes", "no"])
    dress = ("{}", "{}.", "{}, it is", "{}!", " {}", "I think {}", "{} or no")
    return rng.choice(dress).format(rng.choice(["Yes", "No", "yes", "no", "Maybe", "not", "NO"])), [right]


def published() -> dict[
    str, tuple[Callable[[random.Random], tuple[str, list[str]]], Callable[[str, list[str]], float]]
]:
    """For each scorer a generator of answers, and the published implementation."""
    from anls import anls_score
    from lmms_eval.api.metrics import exact_match_hf_evaluate
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.mme.utils import parse_pred_ans
    from lmms_eval.tasks.mmmu.utils import eval_open, parse_open_response
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val
    from torchmetrics.functional.text import squad

    def exact(answer: str, references: list[str]) -> float:
        options = {"ignore_case": True, "ignore_punctuation": True}
        return max(float(exact_match_hf_evaluate([answer], [each], **options)["exact_match"]) for each in references)

    def vqa(answer: str, references: list[str]) -> float:
        doc = {"answers": [{"answer": each, "id": n} for n, each in enumerate(references)], "question_id": 1}
        return float(vqav2_process_results_val(copy.deepcopy(doc), [answer])["exact_match"])

    def contains(answer: str, references: list[str]) -> float:
        doc = {"answer": references, "dataset": "x", "question_type": "x"}
        return float(ocrbench_process_results(doc, [answer])["ocrbench_accuracy"]["score"])

    def f1(answer: str, references: list[str]) -> float:
        truth = {"answer_start": [0] * len(references), "text": references}
        found = squad([{"prediction_text": answer, "id": "1"}], [{"answers": truth, "id": "1"}])
        return round(float(found["f1"]) / 100, 6)

    return {
        "exact": (of_words, exact),
        "vqa": (of_ten, vqa),
        "anls": (of_words, lambda answer, references: anls_score(answer, references)),
        "relaxed": (of_numbers, lambda answer, references: float(relaxed_correctness(answer, references[0]))),
        "choice": (
            of_letters,
            lambda answer, references: float(extract_mcq_answer(answer, [*"ABCD"]) == references[0]),
        ),
        "yes_no": (of_yes_no, lambda answer, references: float(parse_pred_ans(answer) == references[0])),
        "number": (of_numbers, lambda answer, references: float(eval_open(references[0], parse_open_response(answer)))),
        "contains": (of_words, contains),
        "f1": (of_words, f1),
    }


def main() -> None:
    """Write the file."""
    made: dict[str, list[tuple[str, list[str], float]]] = {}
    for name, (generate, score) in published().items():
        rng = random.Random(name)
        drawn = [generate(rng) for _ in range(ANSWERS)]
        made[name] = [(answer, references, score(answer, references)) for answer, references in drawn]
    lines = (f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in made.items())
    FILE.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
