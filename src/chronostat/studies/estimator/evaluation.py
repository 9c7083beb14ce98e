"""How wrong the estimator is: beside measuring once, both against another measurement of the same requests."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronostat.records import Conditions, StageTiming

Floats = NDArray[np.float64]

APART = 0.05  # two settings whose prefill differs by less are not a pair to be ordered


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far one way of knowing a latency is from the reference measurement.

    Attributes:
        prefill_error: median of ``|known / reference - 1|`` of ``prefill_ms``.
        prefill_bias: median of ``known / reference - 1``: above 0 where it says too much.
        decode_error: as ``prefill_error``, of ``decode_ms_per_token``; None where answers have one token.
        wrong_order: share of pairs of settings on one request, at least ``APART`` different, that it orders wrongly.
        wrong_budget: share of (request, setting, budget) where it is wrong about whether the budget is kept.
    """

    prefill_error: float
    prefill_bias: float
    decode_error: float | None
    wrong_order: float
    wrong_budget: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The estimator and a single measurement side by side.

    Attributes:
        requests: held-out samples that were executed.
        pairs: pairs of settings that were ordered.
        budgets_ms: the budgets that were decided: the run's fractions of the reference median of ``full``.
    """

    run: str
    learned_from: int
    requests: int
    executions: int
    pairs: int
    budgets_ms: tuple[float, ...]
    estimated: Errors
    measured_once: Errors
    conditions: Conditions

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What one way of knowing says of each execution, shape [requests, settings]; NaN where there is no decode step."""

    prefill_ms: Floats
    decode_ms_per_token: Floats

    @classmethod
    def of(cls, timings: Sequence[Sequence[StageTiming]]) -> "Known":
        """From the timings of each request under each setting."""
        prefill = [[timing.prefill_ms for timing in row] for row in timings]
        decode = [[timing.decode_ms_per_token for timing in row] for row in timings]
        return cls(prefill_ms=np.array(prefill, dtype=float), decode_ms_per_token=np.array(decode, dtype=float))


def errors(known: Known, reference: Known, budgets_ms: Sequence[float]) -> Errors:
    """How far ``known`` is from ``reference``; shapes [requests, settings].

    A budget is decided wrongly where one is within it and the other is not. Orders are compared within a request.
    """
    prefill = known.prefill_ms / reference.prefill_ms - 1
    decode = known.decode_ms_per_token / reference.decode_ms_per_token - 1
    limits = np.array(budgets_ms)
    within = known.prefill_ms[..., None] <= limits
    really = reference.prefill_ms[..., None] <= limits
    wrong = [
        (known.prefill_ms[r, i] < known.prefill_ms[r, j]) != (reference.prefill_ms[r, i] < reference.prefill_ms[r, j])
        for r, i, j in ordered_pairs(reference)
    ]
    return Errors(
        prefill_error=float(np.median(np.abs(prefill))),
        prefill_bias=float(np.median(prefill)),
        decode_error=float(np.nanmedian(np.abs(decode))) if np.isfinite(decode).any() else None,
        wrong_order=float(np.mean(wrong)) if wrong else float("nan"),
        wrong_budget=float((within != really).mean()),
    )


def ordered_pairs(reference: Known) -> list[tuple[int, int, int]]:
    """(request, setting, setting) of the pairs that differ enough to have an order."""
    prefill_ms = reference.prefill_ms
    requests, settings = prefill_ms.shape
    return [
        (r, i, j)
        for r in range(requests)
        for i, j in combinations(range(settings), 2)
        if abs(np.log(prefill_ms[r, i] / prefill_ms[r, j])) >= np.log1p(APART)
    ]
