"""What these tests share: the stand-in run, and a tiny run of the bundled model."""

import pytest

from e2e.commands import TINY, sets, typed
from stand_ins.runs import stand_in

__all__ = ["stand_in"]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A tiny run of the bundled model whose training has ended; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    said = typed("train", "--run-dir", folder, *sets(*TINY))
    assert said.status == 0, said.err
    return folder
