"""Tasks by name."""

import pytest

from chronostat.config import Config
from chronostat.data.samples import Dataset
from chronostat.data.tasks import TASKS, task_by_name
from chronostat.errors import ConfigError


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_three_disjoint_splits(name):
    task: Dataset = task_by_name(name)
    samples = [task.split(split)[0] for split in ("train", "validation", "test")]
    assert len({sample.id for sample in samples}) == 3
    assert all(sample.references and sample.load_images() for sample in samples)


def test_the_default_is_known():
    assert Config().data.task in TASKS


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown data\.task 'dmo'; known: demo, demo_sizes, and lmms:NAME"):
        task_by_name("dmo")
