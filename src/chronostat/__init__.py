"""Chronostat measures the latency of a vision-language model inside ``generate()`` and learns which knobs to turn.

Importing it does not import torch: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from chronostat import version

if TYPE_CHECKING:
    from chronostat.control.controller import Controller, load_controller
    from chronostat.control.trainer import Trainer
    from chronostat.data.samples import Sample
    from chronostat.engine import graphed
    from chronostat.errors import ChronostatError
    from chronostat.execution.execute import BatchRequest, SampleRequest, execute, request_for
    from chronostat.measure.generate import Measured, Measuring, measure_generate, measuring
    from chronostat.models.load import load_vlm
    from chronostat.records import Budget, Execution, Setting, StageTiming, Trial
    from chronostat.report import write_report
    from chronostat.runs.store import RunStore

__version__ = version.VERSION

_HOMES = {
    "BatchRequest": "execution.execute",
    "Budget": "records",
    "ChronostatError": "errors",
    "Controller": "control.controller",
    "Execution": "records",
    "Measured": "measure.generate",
    "Measuring": "measure.generate",
    "RunStore": "runs.store",
    "Sample": "data.samples",
    "SampleRequest": "execution.execute",
    "Setting": "records",
    "StageTiming": "records",
    "Trainer": "control.trainer",
    "Trial": "records",
    "execute": "execution.execute",
    "graphed": "engine",
    "load_controller": "control.controller",
    "load_vlm": "models.load",
    "measure_generate": "measure.generate",
    "measuring": "measure.generate",
    "request_for": "execution.execute",
    "write_report": "report",
}

__all__ = [
    "BatchRequest",
    "Budget",
    "ChronostatError",
    "Controller",
    "Execution",
    "Measured",
    "Measuring",
    "RunStore",
    "Sample",
    "SampleRequest",
    "Setting",
    "StageTiming",
    "Trainer",
    "Trial",
    "__version__",
    "execute",
    "graphed",
    "load_controller",
    "load_vlm",
    "measure_generate",
    "measuring",
    "request_for",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'chronostat' has no attribute {name!r}")
    return getattr(import_module(f"chronostat.{_HOMES[name]}"), name)
