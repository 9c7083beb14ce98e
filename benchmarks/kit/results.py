"""Result files that carry the conditions they were measured under, and the commit of the code that measured."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chronostat.records import Conditions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


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
