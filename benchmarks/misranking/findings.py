"""How often is the order wrong, and at what cost? Every way to compare, replayed at every limit, and our demands."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.misranking.replays import (
    DIFFERENCES,
    Way,
    attempts,
    by_judge,
    fixed_number,
    in_blocks,
    in_pairs,
    summary,
)
from benchmarks.misranking.series import Series
from chronostat.compare.judging import Rules

LIMITS = (1, 2, 3, 4, 6, 8, 12, 20)
ACCEPTED_LIMIT = 6
FIXED_PAIRS = (5, 6, 9, 12, 24)


def ways() -> dict[str, dict[int, Way]]:
    """Every way to compare by name, then by its limit: the cost, or the number of whole executions of each arm."""
    return {
        "judge": {limit: by_judge(Rules(cost_limit=limit), "one") for limit in LIMITS},
        "median of k in blocks": {k: in_blocks(k, _median) for k in LIMITS},
        "minimum of k in blocks": {k: in_blocks(k, min) for k in LIMITS},
        "interleaved pairs": {k: in_pairs(k, "whole") for k in LIMITS},
        "interleaved pairs, one token": {k: in_pairs(k, "one") for k in LIMITS},
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def replay(series: Series, metric: str, *, times: int, stretch: float) -> dict[str, Any]:
    """All curves and intervals as plain data."""

    def tried(way: Way, difference: float) -> dict[str, Any]:
        return summary(attempts(way, series, metric, difference, times=times, seed=0, stretch=stretch))

    curves = {
        name: {str(d): {str(limit): tried(way, d) for limit, way in by_limit.items()} for d in DIFFERENCES}
        for name, by_limit in ways().items()
    }
    whole = by_judge(Rules(cost_limit=ACCEPTED_LIMIT), "whole")
    return {
        "curves": curves,
        "equal_arms": {str(limit): tried(ways()["judge"][limit], 0.0) for limit in (ACCEPTED_LIMIT, LIMITS[-1])},
        "judge_whole_executions": {str(d): tried(whole, d) for d in (0.0, *DIFFERENCES)},
        "fixed_number": {
            str(pairs): {str(d): tried(fixed_number(pairs, Rules().block, "one"), d) for d in (0.0, 0.1)}
            for pairs in FIXED_PAIRS
        },
    }


def demands(found: Mapping[str, Any]) -> list[tuple[str, float, str, bool]]:
    """What issue and docs ask of the protocol at a limit of 6: name, value, what is asked, whether it is met."""
    judged = {d: found["curves"]["judge"][str(d)][str(ACCEPTED_LIMIT)] for d in DIFFERENCES}
    equal, every = found["equal_arms"], [*judged.values(), *found["equal_arms"].values()]
    fixed = [row["coverage"] for by_difference in found["fixed_number"].values() for row in by_difference.values()]
    false = max(row["verdicts"]["faster"] + row["verdicts"]["slower"] for row in equal.values())
    decided = judged[0.20]["verdicts"]
    shares = [
        ("wrong order of a true 5 %", judged[0.05]["wrong"], "at most", 0.08),
        ("wrong order of a true 10 %", judged[0.10]["wrong"], "at most", 0.02),
        ("true 20 % decided", decided["faster"] + decided["slower"], "at least", 0.90),
        ("false verdicts between equal arms", false, "at most", 0.05),
        ("lowest coverage, fixed number", min(fixed), "at least", 0.92),
        ("highest coverage, fixed number", max(fixed), "at most", 0.98),
        ("lowest coverage, optional stopping", min(row["coverage"] for row in every), "at least", 0.92),
    ]
    rows = [
        (name, value, f"{how} {100 * bound:g} %", value <= bound if how == "at most" else value >= bound)
        for name, value, how, bound in shares
    ]
    cost = max(row["cost"] for row in judged.values())
    return [("mean cost", cost, f"at most {ACCEPTED_LIMIT}", cost <= ACCEPTED_LIMIT), *rows]
