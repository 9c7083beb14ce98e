"""Tasks by name: what is asked where no file of one's own is named, and how it is scored."""

from collections.abc import Callable, Sequence

from chronostat.data.demo import DemoSizesTask, DemoTask
from chronostat.data.lmms.load import load_lmms
from chronostat.data.lmms.tasks import lmms_task
from chronostat.data.samples import Dataset
from chronostat.errors import ConfigError

TASKS: dict[str, Callable[[], Dataset]] = {"demo": DemoTask, "demo_sizes": DemoSizesTask}
"""Bundled tasks, made for the bundled model."""
LMMS = "lmms:"


def task_by_name(name: str, files: Sequence[str] = (), shuffle: int = 0) -> Dataset:
    """One of ``TASKS``, or a task of lmms-eval on local files.

    Raises:
        ConfigError: unknown; lists the known names. Files for a bundled task, or none for another.
        DataError: the files cannot be used.
    """
    if name.startswith(LMMS):
        return load_lmms(name.removeprefix(LMMS), files, shuffle)
    if name not in TASKS:
        raise ConfigError(f"unknown data.task {name!r}; known: {', '.join(TASKS)}, and lmms:NAME for lmms-eval")
    if files:
        raise ConfigError(f"data.files is read with a data.task of lmms-eval only, not with {name!r}; use data.path")
    return TASKS[name]()


def default_quality(name: str) -> str:
    """The scorer of a task, where the configuration names none.

    Raises:
        ConfigError: an unknown task of lmms-eval.
    """
    return lmms_task(name.removeprefix(LMMS)).quality if name.startswith(LMMS) else "exact"
