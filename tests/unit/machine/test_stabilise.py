import gc
import os

import pytest
import torch

from chronostat.machine.stabilise import collector_at_rest, flushes_denormals, stabilised
from chronostat.measure.generate import measure_generate


@pytest.fixture
def unfrozen():
    """The tests' own frozen objects back in the collector's sight, and out of it afterwards."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    yield
    gc.unfreeze()
    if frozen:
        gc.freeze()


def test_the_collector_rests_inside_and_is_as_before_afterwards():
    with collector_at_rest():
        assert not gc.isenabled()
        with collector_at_rest():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(RuntimeError), collector_at_rest():
        raise RuntimeError
    assert gc.isenabled()


def test_a_caller_who_switched_the_collector_off_keeps_it_off():
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_no_collection_falls_into_a_measured_call(bundled, demo_batch):
    inside = []
    hook = bundled.model.register_forward_pre_hook(lambda *_: inside.append(gc.isenabled()))
    try:
        measure_generate(bundled.model, demo_batch, max_new_tokens=2)
    finally:
        hook.remove()
    assert inside
    assert not any(inside)
    assert gc.isenabled()


@pytest.mark.usefixtures("unfrozen")
def test_everything_is_put_back_when_something_raises():
    cpus = os.sched_getaffinity(0)

    def measure():
        with stabilised(threads=2, flush_denormals=True):
            assert torch.get_num_threads() == 2
            assert flushes_denormals()
            assert gc.get_freeze_count() > 0
            os.sched_setaffinity(0, {min(cpus)})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure()
    assert torch.get_num_threads() == 1
    assert not flushes_denormals()
    assert gc.get_freeze_count() == 0
    assert os.sched_getaffinity(0) == cpus


@pytest.mark.usefixtures("unfrozen")
def test_sessions_inside_one_another_leave_the_outer_one_as_it_is():
    with stabilised(flush_denormals=True):
        with stabilised(flush_denormals=False):
            assert not flushes_denormals()
        assert flushes_denormals()
        assert gc.get_freeze_count() > 0
        with stabilised():
            assert flushes_denormals()
    assert not flushes_denormals()
    assert gc.get_freeze_count() == 0


def test_a_caller_who_froze_objects_keeps_them_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with stabilised():
        assert gc.get_freeze_count() == frozen
    assert gc.get_freeze_count() == frozen


def test_where_denormals_cannot_be_flushed_the_conditions_say_so(monkeypatch):
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: False)
    with stabilised(flush_denormals=True):
        assert not flushes_denormals()


def test_the_answer_is_that_of_a_plain_call_bit_for_bit(bundled, demo_batch):
    plain = bundled.model.generate(**demo_batch, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    with stabilised(threads=1, flush_denormals=False):
        measured = measure_generate(bundled.model, demo_batch, max_new_tokens=4)
        again = bundled.model.generate(**demo_batch, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(measured.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))
