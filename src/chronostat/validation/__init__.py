"""The frozen controller judged against fixed settings on held-out samples, measured afresh."""

from chronostat.validation.judge import validate

__all__ = ["validate"]
