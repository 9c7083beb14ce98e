"""The bundled task: drawn scenes with real handwriting, and questions that want different settings."""

from chronostat.data.demo.sizes import DemoSizesTask
from chronostat.data.demo.task import DemoTask

__all__ = ["DemoSizesTask", "DemoTask"]
