"""What all tests share: one torch thread, the bundled model loaded once, and requests for it."""

import gc

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a slow machine fails no test
settings.load_profile("any machine")

# A session of measuring collects at its beginning unless its caller has frozen something. It is done here, where little
# is loaded, since a session counts what is frozen.
gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundled():
    """The bundled model on the CPU, shared by all tests: whoever changes it must undo that."""
    from chronostat.models.load import load_vlm

    return load_vlm(device="cpu")


@pytest.fixture(scope="session")
def demo_sample():
    from chronostat.data.demo.task import DemoTask

    return DemoTask(seed=0).split("train")[0]


@pytest.fixture(scope="session")
def demo_batch(bundled, demo_sample):
    """The first training sample under ``full``, as ``generate()`` takes it; not to be changed."""
    from stand_ins.batches import batch_of

    return batch_of(bundled, demo_sample.load_images(), demo_sample.prompt)
