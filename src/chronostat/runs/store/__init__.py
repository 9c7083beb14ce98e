"""What a run leaves on the disk: append-only Parquet tables and two JSON files (docs/records.md)."""

from chronostat.runs.store.run import RunStore
from chronostat.runs.store.validation import (
    Counted,
    FixedScore,
    KindScore,
    KindsDiffer,
    NoiseFloor,
    PolicyComparison,
    Selected,
    Validation,
)

__all__ = [
    "Counted",
    "FixedScore",
    "KindScore",
    "KindsDiffer",
    "NoiseFloor",
    "PolicyComparison",
    "RunStore",
    "Selected",
    "Validation",
]
