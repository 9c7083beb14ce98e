"""Result files that carry the conditions they were measured under, and the commit of the code that measured."""

import gzip
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
    content = {**_origin(name), "conditions": asdict(conditions), "raw": raw}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def write_compressed(path: Path, name: str, raw: Mapping[str, Any]) -> None:
    """Write raw values by the thousand, conditions among them, with commit and day: gzip-compressed JSON.

    Args:
        path: ends with ``.json.gz``.
        name: of the benchmark.
        raw: plain data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**_origin(name), "raw": raw}, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_compressed(path: Path) -> dict[str, Any]:
    """What ``write_compressed`` wrote."""
    return json.loads(gzip.decompress(path.read_bytes()))


def _origin(name: str) -> dict[str, str]:
    return {"benchmark": name, "commit": commit(), "written": datetime.now(UTC).date().isoformat()}


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
