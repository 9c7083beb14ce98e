"""How a ``generate()`` runs on a device: eagerly, or with its decoder replayed from captured graphs.

Knows nothing of runs and settings. ``docs/engine.md`` says what is replayed, and what is not.
"""

from chronostat.engine.engine import Engine, Ran, graphed
from chronostat.engine.objections import why_eager
from chronostat.engine.replaying import Capturing, CudaCapturing, PlainCapturing

__all__ = ["Capturing", "CudaCapturing", "Engine", "PlainCapturing", "Ran", "graphed", "why_eager"]
