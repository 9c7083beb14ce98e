"""What the benchmarks share: paired intervals, and result files that carry their conditions and commit."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from chronostat.measure.statistics import median_interval
from chronostat.records import Conditions, Estimate

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
_RESAMPLES = 2_000


def ratio_interval(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Median of the paired ratios a / b with its distribution-free 95 % interval; NaN bounds below 6 pairs.

    Args:
        a: numerators, shape [N].
        b: denominators of the same pairs, all positive, shape [N].
    """
    return median_interval((np.asarray(a, dtype=np.float64) / np.asarray(b, dtype=np.float64)).tolist())


def crossed_interval(values: ArrayLike, rng: np.random.Generator) -> Estimate:
    """Mean over seeds and samples, with a percentile bootstrap over both (Owen, The pigeonhole bootstrap, 2007).

    Args:
        values: for example the difference of two learners, paired by seed and sample; shape [seeds, samples].
        rng: draws the resamples.
    """
    table = np.asarray(values, dtype=np.float64)
    seeds, samples = (rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n for n in table.shape)
    return _estimate(float(table.mean()), ((seeds @ table) * samples).sum(axis=1))


def format_estimate(estimate: Estimate, *, digits: int = 3, scale: float = 1.0) -> str:
    """``point [low, high]``; ``scale`` 100 turns shares into points."""
    point, low, high = (f"{scale * value:.{digits}f}" for value in (estimate.point, estimate.low, estimate.high))
    return f"{point} [{low}, {high}]"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write_result(name: str, conditions: Conditions, raw: Mapping[str, Any]) -> Path:
    """Write ``results/NAME.json``: raw values, the conditions they were measured under, commit and day.

    Args:
        name: of the benchmark.
        conditions: of the machine and the process that measured.
        raw: plain data.

    Returns:
        Where it is.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "benchmark": name,
        "commit": commit(),
        "written": datetime.now(UTC).date().isoformat(),
        "conditions": asdict(conditions),
        "raw": raw,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def commit() -> str:
    """The commit of the code that runs, with ``+changes`` where the working tree differs from it, results left aside.

    The environment's ``CHRONOSTAT_COMMIT`` says it on machines that hold no repository.
    """
    if named := os.environ.get("CHRONOSTAT_COMMIT"):
        return named
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return _git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _estimate(point: float, statistics: np.ndarray) -> Estimate:
    low, high = np.quantile(statistics, [0.025, 0.975])
    return Estimate(point=point, low=float(low), high=float(high))
