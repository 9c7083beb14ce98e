"""The controller that these tests share."""

import pytest

from stand_ins.machines import Machine, trained_on


@pytest.fixture(scope="session")
def controller(bundled):
    """Of the bundled model on a simulated machine, counting what callers wait; not to be changed."""
    return trained_on(bundled, Machine(), metric="request_ms")
