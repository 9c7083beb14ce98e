"""What a request may cost."""

from dataclasses import dataclass
from typing import Literal, get_args

from chronostat.errors import BudgetError

BudgetKind = Literal["mean", "deadline"]
DEADLINE_SHARE = 0.95
"""Of the requests that have to be within a deadline."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A latency limit as a fraction of the latency of ``full``.

    Attributes:
        kind: ``mean`` must hold on average, ``deadline`` for a share of ``DEADLINE_SHARE`` of the requests.
        fraction: limit / median latency of ``full`` (which one: docs/definitions.md, "Budgets"), dimensionless.
    """

    kind: BudgetKind
    fraction: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind) or not 0 < self.fraction < float("inf"):
            raise BudgetError(
                f"budget {self.kind!r} {self.fraction!r}: the kind is mean or deadline, the fraction of full a "
                "positive number, for example mean 0.4"
            )

    def ms(self, full_ms: float) -> float:
        """The limit in milliseconds where the median of ``full`` is ``full_ms``."""
        return self.fraction * full_ms

    def __str__(self) -> str:
        return f"{self.kind} {self.fraction:.2f}"
