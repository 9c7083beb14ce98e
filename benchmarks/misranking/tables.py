"""How often is the order wrong, and at what cost? The answer as tables and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit.estimates import markdown_table
from benchmarks.misranking.curves import write_curves
from benchmarks.misranking.findings import ACCEPTED_LIMIT, demands
from benchmarks.misranking.replays import DIFFERENCES
from benchmarks.misranking.series import Series
from chronostat.compare.reasons import kind_of


def disturbances(series: Series, metric: str) -> str:
    """How many executions were marked, by kind, and their median latency beside that of the others."""
    rows = [["disturbed by", "executions", f"median {metric}"]]
    by_kind: dict[str, list[float]] = {}
    for row in series.rows:
        by_kind.setdefault(kind_of(row.disturbed or "nothing"), []).append(getattr(row, metric))
    for kind, values in sorted(by_kind.items(), key=lambda pair: -len(pair[1])):
        rows.append([kind, f"{len(values)} of {len(series.rows)}", f"{np.median(values):.1f} ms"])
    return markdown_table(rows)


def show(found: Mapping[str, Any]) -> str:
    """Tables for docs/comparing.md."""
    head = ["way", "cost", *(f"{100 * d:g} % wrong" for d in DIFFERENCES)]
    rows: list[list[str]] = [head]
    for name, by_difference in found["curves"].items():
        limits = [str(ACCEPTED_LIMIT)] if name == "judge" else ["1", str(ACCEPTED_LIMIT)]
        for limit in limits:
            wrong = [f"{100 * by_difference[str(d)][limit]['wrong']:.1f} %" for d in DIFFERENCES]
            cost = by_difference[str(DIFFERENCES[0])][limit]["cost"]
            rows.append([f"{name}, k = {limit}" if name != "judge" else f"judge, limit {limit}", f"{cost:.1f}", *wrong])
    intervals = [["interval", "true difference", "coverage", "median width"]]
    for pairs, by_difference in found["fixed_number"].items():
        for d, row in by_difference.items():
            intervals.append([f"fixed, {pairs} pairs", *_interval(float(d), row)])
    for limit, row in found["equal_arms"].items():
        intervals.append([f"judge, limit {limit}", *_interval(0.0, row)])
    for d in DIFFERENCES:
        row = found["curves"]["judge"][str(d)][str(ACCEPTED_LIMIT)]
        intervals.append([f"judge, limit {ACCEPTED_LIMIT}", *_interval(d, row)])
    asked = [["demand", "found", "asked", "met"]]
    for name, value, ask, met in demands(found):
        text = f"{value:.2f}" if name == "mean cost" else f"{100 * value:.1f} %"
        asked.append([name, text, ask, "yes" if met else "no"])
    return "\n\n".join(markdown_table(table) for table in (rows, intervals, asked))


def _interval(difference: float, row: Mapping[str, Any]) -> list[str]:
    return [f"{100 * difference:g} %", f"{100 * row['coverage']:.1f} %", f"{100 * row['width']:.1f} %"]


def draw(series: Series, found: Mapping[str, Any], metric: str, times: int, path: Path) -> Path:
    """The curves as a picture."""
    panels = {
        f"true difference {100 * d:g} %": {
            name: [(row["cost"], row["wrong"]) for row in by_difference[str(d)].values()]
            for name, by_difference in found["curves"].items()
        }
        for d in DIFFERENCES
    }
    device = series.conditions["device"]
    where = series.conditions["cpu"] if device == "cpu" else device
    return write_curves(
        path,
        title="Wrong order of two settings over the cost of comparing them",
        subtitle=f"{series.model}, {metric}, {where}; {len(series.rows)} executions in {series.seconds:.0f} s, "
        f"{times} comparisons a point",
        x_title="cost in executed milliseconds; 1 = one whole execution of each arm",
        y_title="wrong order",
        panels=panels,
    )
