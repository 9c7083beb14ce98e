"""The bundled task as a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from chronostat.data.demo.questions import KINDS, Question
from chronostat.data.demo.render import render
from chronostat.data.demo.scenes import CANVAS_PX, Scene, draw_scene
from chronostat.data.samples import DrawnSamples, Sample, Split
from chronostat.errors import DataError

SAMPLES_PER_SPLIT = 6_000
UNSEEN_WORDING_SAMPLES = 1_000  # the last ones of the test split
UNSEEN_SUFFIX = ", unseen wording"
SPLIT_KEYS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


class DemoTask:
    """Questions about drawn scenes with real handwriting; each sample follows from the seed, the split and its index.

    The last samples of the test split are asked in wordings that occur nowhere else; their kind says so.

    Attributes:
        seed: draws the scenes and the questions; the division of the handwriting does not depend on it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split, drawn when they are looked at.

        Raises:
            DataError: the split does not exist.
        """
        if name not in SPLIT_KEYS:
            raise DataError(f"the demo task has no split {name!r}; it has {', '.join(SPLIT_KEYS)}")
        return _DemoSplit(seed=self.seed, name=name)


@dataclass(frozen=True)
class _DemoSplit(DrawnSamples):
    """One split."""

    seed: int
    name: Split

    def __len__(self) -> int:
        return SAMPLES_PER_SPLIT

    def draw(self, position: int) -> Sample:
        """See ``DrawnSamples``."""
        kind, _, question = _draw(self.seed, self.name, position)
        return Sample(
            id=f"demo-{self.name}-{position:06d}",
            split=self.name,
            prompt=question.prompt,
            references=(question.answer,),
            load_images=partial(_load_images, self.seed, self.name, position),
            image_shapes=lambda: ((CANVAS_PX, CANVAS_PX),),
            kind=kind + UNSEEN_SUFFIX if _is_unseen(self.name, position) else kind,
        )


def _is_unseen(split: Split, position: int) -> bool:
    return split == "test" and position >= SAMPLES_PER_SPLIT - UNSEEN_WORDING_SAMPLES


def _draw(seed: int, split: Split, position: int) -> tuple[str, Scene, Question]:
    rng = np.random.default_rng([seed, SPLIT_KEYS[split], position])
    names = list(KINDS)
    shares = np.array([KINDS[name].share for name in names])
    kind = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    scene = draw_scene(rng, split)
    return kind, scene, KINDS[kind].draw(rng, scene, unseen=_is_unseen(split, position))


def _load_images(seed: int, split: Split, position: int) -> tuple[Image.Image, ...]:
    _, scene, _ = _draw(seed, split, position)
    return (Image.fromarray(render(scene)),)
