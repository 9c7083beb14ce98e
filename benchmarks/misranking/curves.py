"""How often is the order wrong over the cost? Curves in panels beside each other, as a standalone SVG."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from chronostat.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from chronostat.report.run.picture import Axis

COLOURS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, GREY)
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 250, 220, 56, 64, 20
_FLOOR = 0.001  # lowest share that is drawn

Curve = Sequence[tuple[float, float]]  # cost, share


def write_curves(
    path: Path, *, title: str, subtitle: str, x_title: str, y_title: str, panels: Mapping[str, Mapping[str, Curve]]
) -> Path:
    """Write one panel for each key, with both scales logarithmic; shares below 0.1 % lie on the lower edge.

    Args:
        path: of the SVG.
        title: heading.
        subtitle: conditions.
        x_title: of the cost.
        y_title: of the share.
        panels: by name the curves by name; the same names in all panels.

    Returns:
        ``path``.
    """
    names = list(next(iter(panels.values())))
    costs = [cost for curves in panels.values() for curve in curves.values() for cost, _ in curve]
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 60 + 18 * math.ceil(len(names) / 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#222"><title>{escape(title)}</title><rect width="{width}" height="{height}" '
        f'fill="#fff"/><text x="{_LEFT}" y="22" font-size="16">{escape(title)}</text>'
        f'<text x="{_LEFT}" y="40" fill="#555">{escape(subtitle)}</text>'
    ]
    y = Axis(low=math.log10(_FLOOR), high=math.log10(0.5), start_px=_TOP + _HEIGHT, end_px=_TOP)
    for number, (panel, curves) in enumerate(panels.items()):
        left = _LEFT + number * (_WIDTH + _GAP)
        x = Axis(low=math.log10(min(costs)), high=math.log10(max(costs)), start_px=left + 6, end_px=left + _WIDTH - 6)
        parts += [_frame(left, x, y, panel, max(costs), labelled=number == 0)]
        parts += [_curve(x, y, curves[name], i) for i, name in enumerate(names)]
    parts.append(f'<text x="{_LEFT}" y="{_TOP + _HEIGHT + 36}">{escape(x_title)}</text>')
    parts.append(f'<text transform="translate(14 {_TOP + _HEIGHT}) rotate(-90)">{escape(y_title)}</text>')
    parts += [_legend(name, i, (width - _LEFT) / 3) for i, name in enumerate(names)]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    return path


def _frame(left: float, x: Axis, y: Axis, panel: str, most: float, *, labelled: bool) -> str:
    bottom = _TOP + _HEIGHT
    text = (
        f'<rect x="{left}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>'
        f'<text x="{left}" y="{_TOP - 6}">{escape(panel)}</text>'
    )
    for cost in (1, 2, 4, 6, 10, 20):
        if cost <= most * 1.01:
            at = x.px(math.log10(cost))
            text += f'<path d="M{at} {_TOP}V{bottom}" stroke="#ddd"/>'
            text += f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{cost}</text>'
    for share in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        at = y.px(math.log10(share))
        text += f'<path d="M{left} {at}H{left + _WIDTH}" stroke="#eee"/>'
        if labelled:
            text += f'<text x="{left - 6}" y="{at + 4}" text-anchor="end">{100 * share:g} %</text>'
    return text


def _curve(x: Axis, y: Axis, curve: Curve, number: int) -> str:
    points = [(x.px(math.log10(cost)), y.px(math.log10(max(share, _FLOOR)))) for cost, share in curve]
    colour, width = COLOURS[number % len(COLOURS)], 3 if number == 0 else 1.6
    line = " ".join(f"{px},{py}" for px, py in points)
    dots = "".join(f'<circle cx="{px}" cy="{py}" r="2.5" fill="{colour}"/>' for px, py in points)
    dash = DASHES[number % len(DASHES)]
    return (
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
        f"{dots}"
    )


def _legend(name: str, number: int, column: float) -> str:
    left, at = _LEFT + (number % 3) * column, _TOP + _HEIGHT + 58 + 18 * (number // 3)
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    return (
        f'<path d="M{left} {at - 4}h28" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>'
        f'<text x="{left + 34}" y="{at}">{escape(name)}</text>'
    )
