"""The errors that Chronostat raises on purpose.

Every message says what was wrong, which value it was, what is allowed and what to do. The command line prints the
message alone and ends with the error's exit code.
"""

from typing import ClassVar


class ChronostatError(Exception):
    """Base of every error that is meant for a person."""

    exit_code: ClassVar[int] = 1


class ConfigError(ChronostatError):
    """A configuration value, key or flag is not allowed."""

    exit_code = 2


class DataError(ChronostatError):
    """A sample, an image or a data file cannot be used."""

    exit_code = 3


class ModelError(ChronostatError):
    """A model directory cannot be used, or a part of the model cannot be found."""

    exit_code = 4


class KnobError(ChronostatError):
    """A knob does not exist on this model, or a setting holds an illegal value."""

    exit_code = 5


class MeasurementError(ChronostatError):
    """An execution could not be measured as asked."""

    exit_code = 6


class ExecutionError(MeasurementError):
    """What one ``generate()`` call did cannot be a measurement; another call can be measured."""


class GenerationTimeout(ExecutionError):  # noqa: N818 - what it is called everywhere
    """A generation took longer than its limit and was ended at the next hook or token."""


class UnlikeConditions(ChronostatError):  # noqa: N818 - the word the field uses
    """Two numbers with different definitions, machines or sources were about to be compared."""

    exit_code = 7


class StoreError(ChronostatError):
    """A run directory cannot be written or read."""

    exit_code = 8


class BudgetError(ChronostatError):
    """No setting of this model can meet the budget."""

    exit_code = 9
