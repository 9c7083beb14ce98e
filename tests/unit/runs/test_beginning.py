"""What would make a run worthless is said before its time is spent."""

from dataclasses import replace

import pytest

from chronostat.data.checking import check_references, never_right
from chronostat.data.demo import DemoTask
from chronostat.data.quality import exact, vqa
from chronostat.data.samples import SPLITS
from chronostat.errors import DataError
from chronostat.progress import DataWarning
from chronostat.records import Execution, Setting, StageTiming, Trial
from chronostat.runs.beginning import check_prompts, what_full_answered

FULL, FAST = Setting(), Setting(moe_topk=1)


class Made:
    """Samples of the bundled task as if they stood in a file, some of them changed."""

    def __init__(self, change):
        self._samples = {
            split: [
                change(replace(sample, where=f"a.jsonl:{n}"), n)
                for n, sample in enumerate(DemoTask().split(split)[:6], start=1)
            ]
            for split in SPLITS
        }

    def split(self, name):
        if not self._samples[name]:
            raise DataError("there are none")
        return self._samples[name]


def stray(sample, number):
    return replace(sample, prompt=f"<IMG_CONTEXT> {sample.prompt}") if number % 2 and sample.split == "test" else sample


def test_a_stray_place_of_an_image_is_found_in_any_split(bundled):
    message = (
        "a.jsonl:1: its prompt holds '<IMG_CONTEXT>', which bundled demo_vlm takes for a part of an image, as do 3 of "
        "6 prompts of test; take it out"
    )
    with pytest.raises(DataError, match=message):
        check_prompts(Made(stray), bundled)
    check_prompts(Made(lambda sample, _: sample), bundled)
    check_prompts(DemoTask(), bundled)


def test_of_samples_that_are_drawn_only_the_first_are(bundled, monkeypatch):
    drawn = []
    draw = type(DemoTask().split("train")).draw
    monkeypatch.setattr(type(DemoTask().split("train")), "draw", lambda *at: drawn.append(at[1]) or draw(*at))
    check_prompts(DemoTask(), bundled)
    check_references(DemoTask(), "exact")
    assert set(drawn) == set(range(32))


def test_every_sample_of_ones_own_is_looked_at(bundled):
    class Listed:
        def split(self, name):
            last = [replace(DemoTask().split(name)[0], prompt="<IMG_CONTEXT>?", id="last")]
            return [*DemoTask().split(name)[:40], *last]

    with pytest.raises(DataError, match="sample last: its prompt holds '<IMG_CONTEXT>'"):
        check_prompts(Listed(), bundled)


def test_the_first_sample_of_each_split_is_prepared(bundled):
    broken = Made(lambda sample, _: replace(sample, load_images=lambda: sample.load_images() * 2, turns=()))
    check_prompts(broken, bundled)  # two images before a prompt are no mistake
    none = Made(lambda sample, _: replace(sample, load_images=tuple) if sample.split == "test" else sample)
    with pytest.raises(DataError, match="sample demo-test-000000 has no image"):
        check_prompts(none, bundled)


def unmatched(sample, number):
    return replace(sample, references=("",)) if number == 3 else sample


def test_references_that_no_answer_can_match():
    samples = Made(unmatched).split("train")
    assert [sample.where for sample in never_right(samples, exact)] == ["a.jsonl:3"]
    assert never_right(samples[:2], vqa) == []
    message = r"the references of 3 of 18 samples can never be matched by data\.quality = 'exact', as in a.jsonl:3: ''"
    with pytest.warns(DataWarning, match=message):
        check_references(Made(unmatched), "exact")
    with pytest.raises(DataError, match=r"no reference can be matched by data\.quality = 'number': .*\(a\.jsonl:1: "):
        check_references(Made(lambda sample, _: replace(sample, references=("nothing",))), "number")
    check_references(DemoTask(), "exact")  # warnings are errors in tests


def execution(number, setting, quality, invalid=None):
    timing = None if invalid else StageTiming(source="total_only", total_ms=1.0, new_tokens=1, decode_steps=0)
    return Execution(
        sample_id=f"s{number}",
        split="train",
        setting=setting,
        timing=timing,
        invalid=invalid,
        answer="cat",
        quality=quality,
    )


def calibration(quality, failures=()):
    """Eight trials of two settings; ``failures`` are the reasons of the first ones of the fast one."""
    return [
        Trial(
            phase="calibrate",
            index=n,
            sample_id=f"s{n}",
            executions=(
                execution(n, FULL, quality),
                execution(n, FAST, 1.0, failures[n] if n < len(failures) else None),
            ),
            draws=(0, 1),
            anchor=0,
            budget=None,
            started_s=0.0,
            drift=None,
        )
        for n in range(8)
    ]


def test_full_that_answers_nothing_right_is_said():
    (told,) = what_full_answered(calibration(0.0), FULL)
    assert told.startswith("full answered 0 % of 8 calibration samples right, such as s0 with 'cat': nothing can be")
    assert list(what_full_answered(calibration(0.3), FULL)) == []
    assert list(what_full_answered(calibration(None), FULL)) == []  # ready batches without a score


def test_failures_are_said_by_reason_with_their_share():
    reasons = ("OutOfMemoryError: tried 512 MiB", "OutOfMemoryError: tried 96 MiB", "ValueError: no")
    told = list(what_full_answered(calibration(1.0, reasons), FULL))
    assert told == [
        "2 of 16 executions of the calibration failed (12%): OutOfMemoryError: tried MiB",
        "1 of 16 executions of the calibration failed (6%): ValueError: no",
    ]
