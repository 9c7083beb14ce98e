"""Sets of intervals on a time line, in one unit throughout: lengths have the unit of the ends."""

from collections.abc import Iterable

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points as disjoint intervals in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    """Length of the union."""
    return sum(end - start for start, end in union(intervals))


def outside(intervals: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    """The parts of ``intervals`` that no interval of ``others`` covers, disjoint and in order."""
    left = union(intervals)
    for out_start, out_end in union(others):
        left = [
            part
            for start, end in left
            for part in ((start, min(end, out_start)), (max(start, out_end), end))
            if part[0] < part[1]
        ]
    return left


def length_outside(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Length of the part of ``intervals`` that no interval of ``others`` covers."""
    intervals, others = list(intervals), list(others)
    return length(intervals + others) - length(others)
