"""The tasks that can be named in a configuration instead of own data."""

from collections.abc import Callable

from chronostat.data.demo import DemoSizesTask, DemoTask
from chronostat.data.samples import Dataset
from chronostat.errors import ConfigError

DEFAULT_TASK = "demo"
TASKS: dict[str, Callable[[], Dataset]] = {DEFAULT_TASK: DemoTask, "demo_sizes": DemoSizesTask}


def task_by_name(name: str) -> Dataset:
    """One of ``TASKS``.

    Raises:
        ConfigError: unknown; lists the known names.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task data.task = {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]()
