"""Executions are compared only where their conditions allow it."""

from collections.abc import Iterable, Mapping
from typing import Any

from chronostat.errors import StoreError
from chronostat.records import Conditions

CONDITIONS = "conditions_by_fingerprint"


def require_comparable(fingerprints: Iterable[str], metadata: Mapping[str, Any]) -> None:
    """Accept executions whose conditions differ in nothing that changes a latency.

    Args:
        fingerprints: of the conditions of the executions.
        metadata: what ``run.json`` holds; says which conditions these are.

    Raises:
        UnlikeConditions: names each field that differs.
        StoreError: a fingerprint that ``run.json`` does not know.
    """
    wanted = list(dict.fromkeys(fingerprints))
    known = metadata.get(CONDITIONS, {})
    unknown = [each for each in wanted if each not in known]
    if unknown:
        raise StoreError(
            f"run.json does not say under which conditions {', '.join(unknown)} was measured ({CONDITIONS}); put back "
            "the run.json that belongs to these executions"
        )
    conditions = [Conditions.from_json(known[each]) for each in wanted]
    for other in conditions[1:]:
        conditions[0].require_comparable(other)
