"""Records as plain data, for JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, cast


class _ReadBack:
    """For pydantic, which only readers of files import: a value goes through ``read`` before it is validated.

    Args:
        read: from what was stored and the fields before it, by name.
    """

    def __init__(self, read: Callable[[object, Mapping[str, Any]], object]) -> None:
        self._read = read

    def __get_pydantic_core_schema__(self, source: object, handler: Callable[[object], Any]) -> Any:  # noqa: ANN401
        from pydantic_core import core_schema

        return core_schema.with_info_before_validator_function(
            lambda value, info: self._read(value, info.data or {}), handler(source)
        )


def _number(value: object, before: Mapping[str, Any]) -> object:
    del before
    return math.nan if value is None else value


def _upper(value: object, before: Mapping[str, Any]) -> object:
    return math.inf if value is None and math.isfinite(before.get("low", math.nan)) else _number(value, before)


Number = Annotated[float, _ReadBack(_number)]
"""A float that is read back from what ``plain`` made of it: NaN."""
Upper = Annotated[float, _ReadBack(_upper)]
"""Likewise the upper bound of an interval: infinity where the lower one, ``low``, is a number."""


def plain(value: Any) -> Any:  # noqa: ANN401 - any part of a record
    """A record, or what ``asdict`` makes of one, for JSON: that has neither NaN nor infinity, so these become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
