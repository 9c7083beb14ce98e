"""Accuracy against latency as a standalone SVG, drawn without a browser."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chronostat.errors import StoreError
from chronostat.files import write_whole
from chronostat.records import Estimate, Setting
from chronostat.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from chronostat.report.run.gather import RunView, look_at
from chronostat.report.templating import environment
from chronostat.report.text import is_full
from chronostat.runs.store import RunStore, Validation

WIDTH, HEIGHT = 880, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 64, 112
_TICKS = 6  # about so many on each axis
_LEAST_SPAN = 0.1  # of an axis: 10 points of accuracy

Point = tuple[Estimate, Estimate, str]  # latency in ms, accuracy in [0, 1], label


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def px(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start_px + share * (self.end_px - self.start_px), 1)

    def ticks(self) -> list[float]:
        """Round values inside the scale."""
        step = _round_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point with its 95 % intervals, in pixels."""

    x: float
    y: float
    left: float
    right: float
    upper: float
    lower: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that look alike."""

    name: str
    shape: str
    colour: str
    marks: Sequence[Mark]
    joined: bool


def write_picture(store: RunStore, path: Path) -> Path:
    """Write the figure as an SVG file.

    Returns:
        ``path``.

    Raises:
        UnlikeConditions: the run mixes sources, metrics or conditions.
        StoreError: nothing was validated in this run, or the file cannot be written.
    """
    run = look_at(store)
    if run.validation is None or not run.validation.scores:
        raise StoreError(f"{store.folder} has no verdict to draw; run chronostat validate on it first")
    write_whole(path, _picture(run, run.validation).encode())
    return path


def _picture(run: RunView, validation: Validation) -> str:
    groups = _groups(run, validation)
    points = [point for _, _, _, group, _ in groups for point in group]
    x = _axis([0.0, *_bounds(latency for latency, _, _ in points)], _LEFT, WIDTH - _RIGHT)
    y = _axis(_bounds(accuracy for _, accuracy, _ in points), HEIGHT - _BOTTOM, _TOP)
    series = [
        Series(name=name, shape=shape, colour=colour, marks=[_mark(x, y, point) for point in group], joined=joined)
        for name, shape, colour, group, joined in groups
        if group
    ]
    model = (run.metadata.get("model") or {}).get("name", "model")
    conditions = run.metadata.get("conditions") or {}
    return (
        environment()
        .get_template("picture.svg.j2")
        .render(
            width=WIDTH,
            height=HEIGHT,
            left=_LEFT,
            right=WIDTH - _RIGHT,
            top=_TOP,
            bottom=HEIGHT - _BOTTOM,
            title=f"Accuracy against latency: {model}",
            subtitle=f"{validation.samples} test samples, {run.source.replace('_', ' ')} {run.metric} + controller_ms, "
            f"{conditions.get('cpu') or conditions.get('device') or 'machine not recorded'}; bars are 95 % intervals",
            x_title=f"mean {run.metric} + controller_ms (ms)",
            x_ticks=[(x.px(value), f"{value:g}") for value in x.ticks()],
            y_ticks=[(y.px(value), f"{100 * value:.0f} %") for value in y.ticks()],
            series=series,
        )
    )


def _groups(run: RunView, validation: Validation) -> list[tuple[str, str, str, list[Point], bool]]:
    """Name, shape, colour, points and whether they are joined, the ones on top last."""
    fixed = [(s.mean_ms, s.accuracy, "") for s in validation.fixed if not is_full(Setting.parse(s.setting), run.space)]
    full = [(s.mean_ms, s.accuracy, "full") for s in validation.fixed if is_full(Setting.parse(s.setting), run.space)]
    return [
        ("fixed setting", "dot", GREY, fixed, False),
        ("full", "square", GREEN, full, False),
        ("best fixed of a budget", "ring", BLUE, _scores(validation, "best fixed"), False),
        ("static mix of two", "diamond", ORANGE, _scores(validation, "static mix"), False),
        ("controller, deadline", "triangle", PURPLE, _scores(validation, "controller", "deadline"), True),
        ("controller, mean", "star", VERMILLION, _scores(validation, "controller", "mean"), True),
    ]


def _scores(validation: Validation, policy: str, kind: str | None = None) -> list[Point]:
    return [
        (score.mean_ms, score.accuracy, f"{score.budget.fraction:g}" if policy == "controller" else "")
        for score in validation.scores
        if score.policy == policy and kind in {None, score.budget.kind}
    ]


def _bounds(estimates: Iterable[Estimate]) -> list[float]:
    """Points and what is known of their intervals."""
    bounds = (bound for each in estimates for bound in (each.point, each.low, each.high))
    return [bound for bound in bounds if math.isfinite(bound)]


def _axis(values: Sequence[float], start_px: float, end_px: float) -> Axis:
    """All values with a margin; equal ones (every answer right, every answer wrong) lie at its upper end or at 0."""
    high = max(values)
    low = min(*values, high - _LEAST_SPAN)
    margin = 0.04 * (high - low)
    return Axis(low=max(0.0, low - margin), high=max(high, _LEAST_SPAN) + margin, start_px=start_px, end_px=end_px)


def _mark(x: Axis, y: Axis, point: Point) -> Mark:
    latency, accuracy, label = point
    return Mark(
        x=x.px(latency.point),
        y=y.px(accuracy.point),
        left=x.px(_or_point(latency.low, latency)),
        right=x.px(_or_point(latency.high, latency)),
        upper=y.px(_or_point(accuracy.high, accuracy)),
        lower=y.px(_or_point(accuracy.low, accuracy)),
        label=label,
    )


def _or_point(bound: float, estimate: Estimate) -> float:
    """An invalid interval is drawn without length."""
    return bound if math.isfinite(bound) else estimate.point


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not smaller."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
