"""One request as a picture: when each stage and each token was."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from chronostat.measure.hooks import BLOCKS, ENCODE, FORWARD, PROJECTOR, VISION
from chronostat.measure.spans import Interval, outside, union
from chronostat.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from chronostat.report.run.picture import Axis
from chronostat.studies.survey import Column, Shot

WIDTH = 1000
_LEFT, _RIGHT, _TOP = 140, 100, 34  # the longest bar has its time at its right
_ROW, _BAR = 30, 18
_LEAST_PX = 1.0  # so that a short stage is seen


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line of the picture: bars in milliseconds since the request began, and what they take together."""

    name: str
    colour: str
    bars_ms: Sequence[Interval]

    @property
    def sum_ms(self) -> float:
        """Length of all bars."""
        return sum(end - start for start, end in self.bars_ms)


def waterfalls(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """What the template draws of each column's typical execution, on one scale."""
    lanes = [list(lanes_of(column.typical)) for column in columns]
    end_ms = max(end for each in lanes for lane in each for _, end in lane.bars_ms)
    axis = Axis(low=0.0, high=end_ms, start_px=_LEFT, end_px=WIDTH - _RIGHT)
    return [_metadata(column, own, axis) for column, own in zip(columns, lanes, strict=True)]


def _metadata(column: Column, lanes: Sequence[Lane], axis: Axis) -> dict[str, Any]:
    bottom = _TOP + _ROW * len(lanes)
    return {
        "name": column.name,
        "width": WIDTH,
        "height": bottom + 48,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "top": _TOP - 8,
        "bottom": bottom,
        "bar": _BAR,
        "ticks": [(axis.px(value), f"{value:g}") for value in axis.ticks()],
        "lanes": [
            {
                "name": lane.name,
                "colour": lane.colour,
                "y": _TOP + _ROW * number,
                "label": f"{lane.sum_ms:.1f} ms",
                "bars": [_bar(axis, interval, number) for number, interval in enumerate(lane.bars_ms)],
            }
            for number, lane in enumerate(lanes)
        ],
        "first_token": _first_token_px(column.typical, axis),
    }


def lanes_of(shot: Shot) -> Iterator[Lane]:
    """The lanes of one execution, in the order of time."""
    begin_ms, timing = shot.execution.preprocess_ms or 0.0, shot.timing
    if begin_ms:
        yield Lane(name="preprocessing", colour=GREY, bars_ms=[(0.0, begin_ms)])
    if timing.source == "measured":
        yield from _stages(shot, begin_ms)
    yield Lane(name="generate()", colour=GREY, bars_ms=[(begin_ms, begin_ms + timing.total_ms)])


def _stages(shot: Shot, begin_ms: float) -> Iterator[Lane]:
    seen = {
        stage: [(begin_ms + start, begin_ms + end) for start, end in spans]
        for stage, spans in shot.waterfall.spans_ms.items()
    }
    tokens_ms = [begin_ms + mark for mark in shot.waterfall.tokens_ms]
    parts: list[Interval] = []
    for name, colour in ((VISION, BLUE), (PROJECTOR, SKY), (BLOCKS, ORANGE)):
        if seen.get(name):
            own = outside(seen[name], seen.get(PROJECTOR, [])) if name == VISION else union(seen[name])
            parts += own
            yield Lane(name=name, colour=colour, bars_ms=own)
    prefill = [interval for stage in (ENCODE, FORWARD, VISION, PROJECTOR) for interval in seen.get(stage, [])]
    yield Lane(name="rest of prefill", colour=PURPLE, bars_ms=outside(prefill, parts))
    yield Lane(name="first token", colour=GREEN, bars_ms=[(max(end for _, end in prefill), tokens_ms[0])])
    if len(tokens_ms) > 1:
        yield Lane(name="decode steps", colour=VERMILLION, bars_ms=list(pairwise(tokens_ms)))


def _bar(axis: Axis, interval: Interval, number: int) -> dict[str, Any]:
    start, end = interval
    x = axis.px(start)
    return {
        "x": x,
        "width": max(_LEAST_PX, round(axis.px(end) - x, 1)),
        "opacity": 1 if number % 2 == 0 else 0.6,  # neighbours are told apart
        "title": f"{end - start:.2f} ms, from {start:.2f} to {end:.2f} ms",
    }


def _first_token_px(shot: Shot, axis: Axis) -> float | None:
    ttft_ms = shot.timing.ttft_ms
    return None if ttft_ms is None else axis.px((shot.execution.preprocess_ms or 0.0) + ttft_ms)
