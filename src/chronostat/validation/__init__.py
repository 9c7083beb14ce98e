"""The frozen controller judged against fixed settings on held-out samples, measured afresh."""

from chronostat.validation.judge import judged_budgets, validate

__all__ = ["judged_budgets", "validate"]
