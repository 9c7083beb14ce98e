"""Pixels of a scene: the one renderer, used for training and for the shipped task alike."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from chronostat.data.demo.scans import SCAN_PX, scan_images
from chronostat.data.demo.scenes import CANVAS_PX, SHAPE_RADII_PX, Digit, Pose, Scene, Shape

Floats = NDArray[np.floating]

_COLOUR_RGB = {
    "red": (215, 30, 35),
    "yellow": (225, 185, 0),
    "green": (25, 140, 45),
    "cyan": (0, 180, 200),
    "blue": (30, 60, 220),
    "purple": (150, 40, 175),
    "black": (15, 15, 15),
}
_BACKGROUND_RGB = {
    "white": (245, 245, 245),
    "grey": (185, 185, 188),
    "mint": (185, 235, 205),
    "pink": (245, 200, 215),
    "sand": (232, 212, 170),
}
_GRAIN_LEVELS = 10.0  # standard deviation of the noise, in levels of 255
_SHADE_LEVELS = 12.0  # the background grows lighter or darker by at most this much across the canvas
_WINDOW_RADIUS_PX = 15

# Distance beyond the outline in units of the radius (negative inside), for offsets x, y in the same units.
_OUTLINES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1.0,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(0.87 * np.abs(x) - 0.5 * y, y) - np.float32(0.62),
    "cross": lambda x, y: np.maximum(np.maximum(np.abs(x), np.abs(y)) - 1.0, np.minimum(np.abs(x), np.abs(y)) - 0.3),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
    "diamond": lambda x, y: (np.abs(x) + np.abs(y) - 1.0) * np.float32(0.71),
}


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draws a scene.

    Returns:
        [128, 128, 3] RGB levels; equal scenes give equal pixels.
    """
    rng = np.random.default_rng(scene.grain_seed)
    canvas = _background(rng, scene.background)
    for shape in scene.shapes:
        _paint(canvas, shape.pose, shape.colour, lambda x, y, shape=shape: _shape_cover(shape, x, y))
    for digit in scene.digits:
        _paint(canvas, digit.pose, digit.colour, lambda x, y, digit=digit: _digit_cover(digit, x, y))
    canvas += _GRAIN_LEVELS * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, name: str) -> Floats:
    """[128, 128, 3]: a plain colour under a gentle slope of light."""
    ramp = np.linspace(-1.0, 1.0, CANVAS_PX, dtype=np.float32)
    down, right = rng.uniform(-_SHADE_LEVELS / 2, _SHADE_LEVELS / 2, size=2).astype(np.float32)
    slope = down * ramp[:, None] + right * ramp[None, :]
    return slope[:, :, None] + np.array(_BACKGROUND_RGB[name], dtype=np.float32)


def _paint(canvas: Floats, pose: Pose, colour: str, cover: Callable[[Floats, Floats], Floats]) -> None:
    """Blends a colour into the canvas where `cover` (share of a pixel, from offsets in px) says so."""
    left, top = (max(int(centre) - _WINDOW_RADIUS_PX, 0) for centre in (pose.x_px, pose.y_px))
    window = canvas[top : top + 2 * _WINDOW_RADIUS_PX + 1, left : left + 2 * _WINDOW_RADIUS_PX + 1]
    dx = (left + 0.5 + np.arange(window.shape[1], dtype=np.float32) - pose.x_px)[None, :]
    dy = (top + 0.5 + np.arange(window.shape[0], dtype=np.float32) - pose.y_px)[:, None]
    a, b, c, d = pose.axes
    share = cover(a * dx + b * dy, c * dx + d * dy)[:, :, None]
    window += share * (np.array(_COLOUR_RGB[colour], dtype=np.float32) - window)


def _shape_cover(shape: Shape, x_px: Floats, y_px: Floats) -> Floats:
    radius_px = SHAPE_RADII_PX[shape.size]
    outside_px = _OUTLINES[shape.name](x_px / radius_px, y_px / radius_px) * radius_px
    return np.clip(0.5 - outside_px, 0.0, 1.0).astype(np.float32)


def _digit_cover(digit: Digit, x_px: Floats, y_px: Floats) -> Floats:
    """The scan's ink at the given offsets, interpolated between its pixels; none outside the scan."""
    ink = np.pad(scan_images()[digit.scan], 2)
    scale = SCAN_PX / digit.size_px
    centre = SCAN_PX / 2 - 0.5 + 2  # of the padded scan, in its pixels
    column = np.clip(x_px * scale + centre, 0, ink.shape[1] - 1.001)
    row = np.clip(y_px * scale + centre, 0, ink.shape[0] - 1.001)
    j, i = column.astype(np.intp), row.astype(np.intp)
    u, v = column - j, row - i
    upper = ink[i, j] * (1 - u) + ink[i, j + 1] * u
    lower = ink[i + 1, j] * (1 - u) + ink[i + 1, j + 1] * u
    return np.clip(1.25 * (upper * (1 - v) + lower * v), 0.0, 1.0).astype(np.float32)
