"""Tasks by name: what is asked where no file of one's own is named."""

from collections.abc import Callable

from chronostat.data.demo import DemoTask
from chronostat.data.samples import Dataset
from chronostat.errors import ConfigError

TASKS: dict[str, Callable[[], Dataset]] = {"demo": DemoTask}
"""Bundled tasks, made for the bundled model."""


def task_by_name(name: str) -> Dataset:
    """One of ``TASKS``.

    Raises:
        ConfigError: unknown; lists the known names.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown data.task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]()
