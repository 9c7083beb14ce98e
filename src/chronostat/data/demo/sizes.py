"""The bundled task in pictures of different size and number: what a request costs differs by far."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from chronostat.data.demo.task import SPLIT_KEYS, DemoTask
from chronostat.data.samples import DrawnSamples, Sample, Split

_PICTURES = {1: 0.25, 2: 0.15, 3: 0.15, 4: 0.15, 5: 0.15, 6: 0.15}  # how many there are, with their chances
# Sides in pixels of the last picture, the whole scene, with their chances. With tiles of 32 px the bundled processor
# makes 1, 4 and the whole, 9 and the whole, 16 and the whole of them: 16, 80, 160 and 272 image tokens.
_SCENE_PX = {40: 0.25, 64: 0.2, 80: 0.1, 128: 0.45}
# Previews: the side of a square of the same area, and how many times as wide as high. They stay small, since the model
# was trained on one picture and loses its way among many hundred image tokens.
_PREVIEW_PX = (28.0, 52.0)
_ASPECTS = (1 / 3, 1 / 2, 1, 2, 3)  # 16, 48, 64 or 80 image tokens
_OWN = 19  # keeps these draws apart from those of the scenes


class DemoSizesTask:
    """The questions of ``DemoTask``, each about one to six pictures of its scene.

    The last picture is the whole scene in one of four sizes; those before it are previews: the scene again, smaller and
    stretched to another shape. A sample follows from the seed, the split and its index, as there.

    Attributes:
        seed: as of ``DemoTask``.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def split(self, name: Split) -> Sequence[Sample]:
        """The samples of one split, drawn when they are looked at.

        Raises:
            DataError: the split does not exist.
        """
        return _SizesSplit(seed=self.seed, name=name, scenes=DemoTask(self.seed).split(name))


@dataclass(frozen=True)
class _SizesSplit(DrawnSamples):
    """One split."""

    seed: int
    name: Split
    scenes: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.scenes)

    def draw(self, position: int) -> Sample:
        """See ``DrawnSamples``."""
        scene = self.scenes[position]
        shapes = _draw_shapes(np.random.default_rng([_OWN, self.seed, SPLIT_KEYS[self.name], position]))
        return replace(
            scene,
            id=f"demo-sizes-{self.name}-{position:06d}",
            load_images=partial(_load_images, scene, shapes),
            image_shapes=lambda: tuple((height, width) for width, height in shapes),
        )


def _draw_shapes(rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """Width and height of each picture in pixels, the scene itself last."""
    previews = int(rng.choice(list(_PICTURES), p=list(_PICTURES.values()))) - 1
    sides = np.exp(rng.uniform(*np.log(_PREVIEW_PX), size=previews))
    stretches = np.sqrt(rng.choice(_ASPECTS, size=previews))
    scene_px = int(rng.choice(list(_SCENE_PX), p=list(_SCENE_PX.values())))
    shapes = [(round(side * by), round(side / by)) for side, by in zip(sides.tolist(), stretches.tolist(), strict=True)]
    return (*shapes, (scene_px, scene_px))


def _load_images(scene: Sample, shapes: Sequence[tuple[int, int]]) -> tuple[Image.Image, ...]:
    (picture,) = scene.load_images()
    return tuple(picture if shape == picture.size else picture.resize(shape) for shape in shapes)
