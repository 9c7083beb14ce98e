"""A controller that a verb uses, and the configuration that its model is loaded with."""

from collections.abc import Sequence
from pathlib import Path

from chronostat.config import Config, MeasureConfig, overridden, refuse_others
from chronostat.control.controller_files import read_controller

_TAKEN = ("model.", "measure.threads=", "measure.flush_denormals=", "measure.max_new_tokens=", "measure.time_limit_s=")
_ALONE = Config(measure=MeasureConfig(max_new_tokens=256))  # without a controller nothing says how long answers are
_SAID = "taken are keys of model, and measure.threads, flush_denormals, max_new_tokens and time_limit_s"


def config_with(controller: Path | None, model: str | None, overrides: Sequence[str]) -> Config:
    """That of a controller's training, or of all defaults, with what was typed.

    Args:
        controller: its directory; None: there is none.
        model: another place of the model; None: the controller's, or the bundled model.
        overrides: ``section.key=value``.

    Raises:
        ConfigError: a key is unknown or not read, or a value is not allowed.
        StoreError: the directory holds no controller.
    """
    refuse_others(overrides, _TAKEN, _SAID)
    config = _ALONE if controller is None else read_controller(controller)[0].controller.config
    named = () if model is None else (f"model.path={model}",)
    return overridden(config, [*named, *overrides])
