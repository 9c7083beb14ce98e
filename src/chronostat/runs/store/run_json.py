"""What ``run.json`` has to hold where it is read: the kinds of its values, as far as anything depends on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from chronostat.errors import StoreError


class _Model(BaseModel):
    name: str | None = None
    fingerprint: str | None = None
    parameters: int | None = None


class _Config(BaseModel):
    train: Mapping[str, Any] | None = None


class _Data(BaseModel):
    path: str | None = None
    digests: Mapping[str, str] | None = None


class _Forecast(BaseModel):
    error: float
    executions: int


class _Metadata(BaseModel):
    """Other keys are read by nobody, or by those who check them."""

    model: _Model | None = None
    data: _Data | None = None
    space: Mapping[str, Annotated[list[float | str | list[int]], Field(min_length=1)]] | None = None
    config: _Config | None = None
    conditions: Mapping[str, Any] | None = None
    conditions_by_fingerprint: Mapping[str, Mapping[str, Any]] | None = None
    full_ms: Mapping[str, float | None] | None = None
    budget_range: tuple[float, float] | None = None
    phases: Mapping[str, Mapping[str, Any]] | None = None
    taken_out: Mapping[str, str] | None = None
    calibration: Mapping[str, Any] | None = None
    forecast: _Forecast | None = None
    selfcheck: Mapping[str, Any] | None = None


def require_metadata(data: Mapping[str, Any], path: Path) -> None:
    """Accept what ``run.json`` holds; keys may be absent.

    Raises:
        StoreError: a value is of the wrong kind; names its key.
    """
    try:
        _Metadata.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise StoreError(f"cannot read {path}: {key}: {problem['msg']}; put back a whole copy") from None
