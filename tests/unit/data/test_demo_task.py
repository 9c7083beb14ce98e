"""The bundled task: deterministic, split by handwriting, honest about what it shows."""

import re
from collections import defaultdict
from string import Formatter

import numpy as np
import pytest

from chronostat.data.demo import DemoTask
from chronostat.data.demo.questions import KINDS
from chronostat.data.demo.render import render
from chronostat.data.demo.scans import scan_values, scans_of
from chronostat.data.demo.scenes import draw_scene
from chronostat.data.demo.task import UNSEEN_SUFFIX, UNSEEN_WORDING_SAMPLES
from chronostat.errors import DataError

SPLITS = ("train", "validation", "test")


def _sentence(prompt):
    """The prompt with whatever fills a blank replaced, to compare it with wordings."""
    fillers = "red|yellow|green|cyan|blue|purple|black|circle|square|triangle|cross|ring|diamond|big|small"
    return re.sub(rf"\b({fillers})\b", "*", prompt)


def _as_sentence(wording):
    return _sentence(wording.format_map(defaultdict(lambda: "red")))


def test_samples_are_the_same_on_every_look():
    one, other = DemoTask(seed=3).split("validation")[17], DemoTask(seed=3).split("validation")[17]
    assert (one.id, one.prompt, one.references, one.kind) == (other.id, other.prompt, other.references, other.kind)
    assert one.load_images()[0].tobytes() == other.load_images()[0].tobytes()


@pytest.mark.parametrize("name", SPLITS)
def test_ids_are_stable_and_unique(name):
    samples = DemoTask().split(name)
    assert len(samples) >= 5_000
    assert samples[0].id == f"demo-{name}-000000"
    assert samples[-1].id == f"demo-{name}-{len(samples) - 1:06d}"
    assert samples[41].split == name


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test"):
        DemoTask().split("dev")


def test_no_scan_belongs_to_two_splits():
    parts = [set(scans_of(name).tolist()) for name in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(scan_values())
    rng = np.random.default_rng(0)
    for name, part in zip(SPLITS, parts, strict=True):
        shown = {digit.scan for _ in range(100) for digit in draw_scene(rng, name).digits}
        assert shown <= part


def test_only_the_end_of_the_test_split_is_asked_in_unseen_wordings():
    seen = {_as_sentence(wording) for kind in KINDS.values() for wording in kind.wordings}
    unseen = {_as_sentence(kind.unseen_wording) for kind in KINDS.values()}
    assert not seen & unseen
    for name in SPLITS:
        samples = DemoTask().split(name)
        first_unseen = len(samples) - (UNSEEN_WORDING_SAMPLES if name == "test" else 0)
        near_the_end = range(len(samples) - UNSEEN_WORDING_SAMPLES - 60, len(samples) - UNSEEN_WORDING_SAMPLES + 60)
        for position in (*range(60), *near_the_end, *range(len(samples) - 60, len(samples))):
            sample = samples[position]
            assert _sentence(sample.prompt) in (unseen if position >= first_unseen else seen)
            assert sample.kind.endswith(UNSEEN_SUFFIX) == (position >= first_unseen)
            assert sample.kind.removesuffix(UNSEEN_SUFFIX) in KINDS


def test_unseen_wordings_use_only_words_of_the_seen_ones():
    def words(wording):
        return set(re.findall(r"[a-z]+", re.sub(r"{\w+}", "", wording.lower())))

    known = set().union(*(words(wording) for kind in KINDS.values() for wording in kind.wordings))
    for kind in KINDS.values():
        assert words(kind.unseen_wording) <= known
        assert len(set(kind.wordings)) == 3


def test_every_wording_has_the_same_blanks():
    for kind in KINDS.values():
        blanks = [
            {name for _, name, _, _ in Formatter().parse(wording) if name}
            for wording in (*kind.wordings, kind.unseen_wording)
        ]
        assert all(names == blanks[0] for names in blanks)


def test_answers_take_several_new_tokens():
    # One token a digit or a word, then the end of sequence.
    by_kind = defaultdict(list)
    for sample in DemoTask().split("validation")[:2_000]:
        (answer,) = sample.references
        by_kind[sample.kind].append((len(answer) if answer.isdigit() else 1) + 1)
    assert np.mean([count for counts in by_kind.values() for count in counts]) >= 2.5
    assert max(by_kind["read"]) == 5  # four digits
    assert max(by_kind["order"]) == 6  # five shapes


def test_the_kinds_are_asked_as_often_as_their_shares_say():
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1.0)
    drawn = [sample.kind for sample in DemoTask().split("train")[:1_000]]
    for name, kind in KINDS.items():
        assert drawn.count(name) / 1_000 == pytest.approx(kind.share, abs=0.05)


def test_a_prompt_never_holds_its_kind_or_its_split():
    for sample in DemoTask().split("test")[:100]:
        assert sample.split not in sample.prompt
        assert UNSEEN_SUFFIX not in sample.prompt


def test_equal_scenes_give_equal_pixels_and_others_do_not():
    rng = np.random.default_rng(5)
    scene, other = draw_scene(rng, "test"), draw_scene(rng, "test")
    assert render(scene).shape == (128, 128, 3)
    assert (render(scene) == render(scene)).all()
    assert (render(scene) != render(other)).any()


def test_answers_follow_from_the_scene():
    rng = np.random.default_rng(11)
    for _ in range(50):
        scene = draw_scene(rng, "validation")
        points = sorted(shape.points for shape in scene.shapes)
        big = sum(shape.points for shape in scene.shapes if shape.size == "big")
        small = sum(points) - big
        assert KINDS["read"].draw(rng, scene).answer == "".join(str(digit.value) for digit in scene.digits)
        assert KINDS["order"].draw(rng, scene).answer == "".join(map(str, points))
        assert KINDS["worth"].draw(rng, scene).answer == str(sum(points))
        assert KINDS["gap"].draw(rng, scene).answer == str(abs(big - small))
        assert KINDS["total"].draw(rng, scene).answer == str(sum(digit.value for digit in scene.digits))
        assert len({digit.colour for digit in scene.digits}) == len(scene.digits)
        assert len({shape.colour for shape in scene.shapes}) == len(scene.shapes)
