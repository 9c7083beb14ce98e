"""What is in a scene: handwritten digits and coloured shapes in the cells of a 4 x 4 canvas, without any pixels."""

from dataclasses import dataclass

import numpy as np

from chronostat.data.demo.scans import scan_values, scans_of
from chronostat.data.samples import Split

GRID = 4
CELL_PX = 32
CANVAS_PX = GRID * CELL_PX

# A colour's points are the rule of this little world: nothing in the picture shows them.
COLOUR_POINTS = {"red": 1, "yellow": 2, "green": 3, "cyan": 4, "blue": 5, "purple": 6, "black": 7}
COLOURS = tuple(COLOUR_POINTS)
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
BACKGROUNDS = ("white", "grey", "mint", "pink", "sand")
DIGIT_SIZES_PX = (6.0, 7.0)
SHAPE_RADII_PX = {"big": 12.0, "small": 7.0}


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where an object is, and how its own axes lie.

    Attributes:
        x_px: centre, from the left edge of the canvas.
        y_px: centre, from the top edge.
        axes: 2 x 2 matrix (row by row) from canvas offsets to the object's own offsets, both in pixels.
    """

    x_px: float
    y_px: float
    axes: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)

    @property
    def column(self) -> int:
        """The column of the cell that holds the centre."""
        return int(self.x_px // CELL_PX)

    @property
    def cell(self) -> int:
        """The index of the cell that holds the centre, row by row."""
        return int(self.y_px // CELL_PX) * GRID + self.column


@dataclass(frozen=True, kw_only=True)
class Digit:
    """A handwritten digit: which scan, in which colour, how high and where."""

    scan: int
    colour: str
    size_px: float
    pose: Pose

    @property
    def value(self) -> int:
        """The digit that was written."""
        return int(scan_values()[self.scan])


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A filled shape, big or small."""

    name: str
    colour: str
    size: str
    pose: Pose

    @property
    def points(self) -> int:
        """What the shape is worth, by its colour."""
        return COLOUR_POINTS[self.colour]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture in words.

    Digits stand in distinct columns, sorted from left to right. No two digits and no two shapes share a colour
    or (shapes) a name, so that a colour or a name points at one object; the first shape has a digit's colour.

    Attributes:
        background: its colour.
        digits: 2 to 4, all of one size.
        shapes: 2 to 5.
        grain_seed: draws the noise of the picture.
    """

    background: str
    digits: tuple[Digit, ...]
    shapes: tuple[Shape, ...]
    grain_seed: int


def draw_scene(rng: np.random.Generator, split: Split) -> Scene:
    """A random scene with handwriting of one split; training handwriting is also slanted and stretched."""
    digits = _draw_digits(rng, split)
    taken = {digit.pose.cell for digit in digits}
    return Scene(
        background=str(rng.choice(BACKGROUNDS)),
        digits=digits,
        shapes=_draw_shapes(rng, taken, digits),
        grain_seed=int(rng.integers(2**31)),
    )


def _draw_digits(rng: np.random.Generator, split: Split) -> tuple[Digit, ...]:
    count = int(rng.integers(2, 5))
    columns = np.sort(rng.permutation(GRID)[:count])
    rows = rng.integers(GRID, size=count)
    colours = rng.permutation(COLOURS)[:count]
    size_px = float(rng.choice(DIGIT_SIZES_PX))
    scans = rng.choice(scans_of(split), size=count)
    return tuple(
        Digit(
            scan=int(scan),
            colour=str(colour),
            size_px=size_px,
            pose=_draw_pose(rng, int(row), int(column), size_px / 2, slanted=split == "train"),
        )
        for scan, colour, row, column in zip(scans, colours, rows, columns, strict=True)
    )


def _draw_shapes(rng: np.random.Generator, taken: set[int], digits: tuple[Digit, ...]) -> tuple[Shape, ...]:
    count = int(rng.integers(2, 6))
    free = [cell for cell in range(GRID * GRID) if cell not in taken]
    cells = rng.permutation(free)[:count]
    shared = digits[int(rng.integers(len(digits)))].colour
    others = rng.permutation([colour for colour in COLOURS if colour != shared])
    colours = [shared, *(str(colour) for colour in others[: count - 1])]
    names = rng.permutation(SHAPES)[:count]
    sizes = rng.choice(list(SHAPE_RADII_PX), size=count)
    return tuple(
        Shape(
            name=str(name),
            colour=colour,
            size=str(size),
            pose=_draw_pose(rng, int(cell) // GRID, int(cell) % GRID, SHAPE_RADII_PX[str(size)]),
        )
        for name, colour, size, cell in zip(names, colours, sizes, cells, strict=True)
    )


def _draw_pose(rng: np.random.Generator, row: int, column: int, radius_px: float, *, slanted: bool = False) -> Pose:
    """A place inside a cell with a pixel to spare; `slanted` draws a rotation, a shear and an aspect as well."""
    play = max(CELL_PX / 2 - radius_px - 1, 0.0)
    x_px, y_px = (np.array([column, row]) + 0.5) * CELL_PX + rng.uniform(-play, play, size=2)
    if not slanted:
        return Pose(x_px=float(x_px), y_px=float(y_px))
    angle = np.deg2rad(rng.uniform(-14, 14))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, rng.uniform(-0.15, 0.15)], [0.0, 1.0]])
    stretch = np.diag(np.exp(rng.uniform(-0.14, 0.14, size=2)))
    a, b, c, d = (float(value) for value in (turn @ shear @ stretch).ravel())
    return Pose(x_px=float(x_px), y_px=float(y_px), axes=(a, b, c, d))
