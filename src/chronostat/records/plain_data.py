"""Records as plain data, for JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, ValidationInfo


def _upper(value: object, info: ValidationInfo) -> object:
    return math.inf if value is None and math.isfinite(info.data.get("low", math.nan)) else _number(value)


def _number(value: object) -> object:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_number)]
"""A float that is read back from what ``plain`` made of it: NaN."""
Upper = Annotated[float, BeforeValidator(_upper)]
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
