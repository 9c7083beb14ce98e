"""Who the samples of a run are."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from chronostat.data.demo import DemoTask
from chronostat.data.identity import digests, require_same
from chronostat.data.own import OwnData
from chronostat.errors import DataError
from chronostat.records import Turn


@pytest.fixture
def lines(tmp_path):
    made = []
    for number, split in enumerate(("train", "validation", "test") * 2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        made.append(
            {"id": str(number), "image": f"{number}.png", "prompt": "What?", "answers": ["cat"], "split": split}
        )
    return made


def data(folder, lines):
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return OwnData(path)


def test_the_same_samples_are_the_same_in_any_order_of_the_file(tmp_path, lines):
    stored = digests(data(tmp_path, lines))
    assert set(stored) == {"train", "validation", "test"}
    assert digests(data(tmp_path, lines[::-1])) == stored
    require_same(stored, data(tmp_path, lines), "runs/a")
    require_same({}, data(tmp_path, lines[:3]), "runs/of/an/earlier/version")


def swapped(line):
    return line | {"split": {"train": "test", "test": "train"}.get(line["split"], line["split"])}


@pytest.mark.parametrize(
    ("change", "splits"),
    [
        (swapped, "train and test"),
        (lambda line: line | ({"answers": ["dog"]} if line["id"] == "2" else {}), "test"),
        (lambda line: line | ({"prompt": "Why?"} if line["id"] == "1" else {}), "validation"),
        (lambda line: line | ({"options": ["cat", "dog"]} if line["id"] == "0" else {}), "train"),
    ],
)
def test_other_samples_are_refused(tmp_path, lines, change, splits):
    stored = digests(data(tmp_path, lines))
    message = f"the samples of {splits} are not those that the run in runs/a began with; put the data back as it was"
    with pytest.raises(DataError, match=message):
        require_same(stored, data(tmp_path, list(map(change, lines))), "runs/a")


def test_another_picture_under_the_same_name_is_another_sample(tmp_path, lines):
    stored = digests(data(tmp_path, lines))
    Image.new("RGB", (4, 4), "white").save(tmp_path / "2.png")
    with pytest.raises(DataError, match="the samples of test are not those"):
        require_same(stored, data(tmp_path, lines), "runs/a")


class Listed:
    """A data set of one's own in Python: as many samples of the bundled task, some of them changed."""

    def __init__(self, change=lambda sample, _: sample):
        self._samples = [change(sample, number) for number, sample in enumerate(DemoTask().split("train")[:40])]

    def split(self, name):
        return self._samples


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Why?"},
        {"id": "x"},
        {"references": ("x",)},
        {"options": ("one", "two")},
        {"turns": (Turn(role="user", parts=(0, "Why?")),)},
        {"image_digests": ("x",)},
    ],
)
def test_every_sample_of_ones_own_counts_with_all_that_is_said(change):
    last = Listed(lambda sample, number: replace(sample, **change) if number == 39 else sample)
    assert digests(last)["train"] != digests(Listed())["train"]


def test_places_and_roles_in_a_conversation_count():
    turns = [(Turn(role=role, parts=parts),) for role in ("user", "system") for parts in ((0, "a"), ("a", 0))]
    assert len({digests(Listed(lambda s, _, t=t: replace(s, turns=t)))["train"] for t in turns}) == 4


def test_samples_that_are_drawn_are_told_by_the_first_of_them(monkeypatch):
    drawn = []
    draw = type(DemoTask().split("train")).draw
    monkeypatch.setattr(type(DemoTask().split("train")), "draw", lambda *at: drawn.append(at[1]) or draw(*at))
    assert digests(DemoTask()) == digests(DemoTask()) != digests(DemoTask(seed=1))
    assert set(drawn) == set(range(32))  # drawing thousands takes seconds
