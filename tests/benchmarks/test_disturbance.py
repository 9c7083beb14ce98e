"""Comparisons beside another program, counted by hand."""

import math

from benchmarks import disturbance
from chronostat.records import Estimate


def test_comparisons_beside_another_program_are_counted_by_their_verdict():
    def said(low, point, high, verdict):
        return disturbance.Said(
            ratio=Estimate(low=low, point=point, high=high), verdict=verdict, executions=4, left_out=1
        )

    row = disturbance.summary(
        [
            said(1.05, 1.1, 1.2, "slower"),
            said(0.8, 0.9, 0.95, "faster"),
            said(0.99, 1.01, 1.015, "same"),
            said(0.0, 1.2, math.inf, "undecided"),
            said(math.nan, math.nan, math.nan, "invalid"),
        ]
    )
    # the truth is 1.10: wrong order 1 of 4 with a number, held by 2 of 4, of which 3 have bounds
    assert (row["comparisons"], row["numbers"], row["wrong"], row["coverage"]) == (5, 4, 0.25, 0.5)
    assert (row["bounded"], row["left_out"]) == (3, 0.25)
    *_, right, wrong, left_out = disturbance.table({"no": {"judge": row}}).splitlines()[-1].strip("| ").split(" | ")
    assert (right, wrong, left_out) == ("1", "2", "25 %")  # same is as wrong as faster where arms differ by 10 %
