import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronostat.measure.spans import length, length_outside, outside, union

moments = st.integers(0, 50)
interval_lists = st.lists(st.tuples(moments, moments).map(lambda pair: (float(min(pair)), float(max(pair)))))


def test_overlapping_and_touching_intervals_become_one():
    assert union([(5, 8), (0, 2), (2, 3), (6, 9)]) == [(0, 3), (5, 9)]


def test_an_interval_inside_another_adds_nothing():
    assert length([(0, 10), (2, 5)]) == 10


def test_length_sums_disjoint_parts():
    assert length([(0, 2), (5, 9)]) == 6  # 2 + 4


def test_length_outside_takes_out_what_the_others_cover():
    assert length_outside([(0, 10)], [(2, 5), (9, 12)]) == 6  # 10 - 3 - 1


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(-5, 3)], [(3, 10)]),
        ([(2, 4), (6, 20)], [(0, 2), (4, 6)]),
        ([(10, 12), (-3, 0)], [(0, 10)]),
    ],
)
def test_what_lies_outside(others, left):
    assert outside([(0, 10)], others) == left


def test_nothing_has_no_length():
    assert (union([]), length([]), length_outside([], [(0, 1)])) == ([], 0, 0)


@given(interval_lists, interval_lists)
def test_inside_and_outside_sum_up(intervals, others):
    covered = {i for start, end in intervals for i in range(int(start), int(end))}
    taken = {i for start, end in others for i in range(int(start), int(end))}
    assert length(intervals) == len(covered)
    assert length_outside(intervals, others) == len(covered - taken)


@given(interval_lists, interval_lists)
def test_what_lies_outside_has_the_length_outside(intervals, others):
    assert length(outside(intervals, others)) == length_outside(intervals, others)
