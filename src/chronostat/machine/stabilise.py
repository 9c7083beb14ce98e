"""What is under control while latencies are measured, and is put back afterwards.

The garbage collector rests during each measured call (``collector_at_rest``). A session (``stabilised``) fixes the
number of torch threads and how numbers near 0 count, takes what lives so far out of the collector's sight, and puts
back threads, the CPUs that the process may run on, and all the rest.
"""

import gc
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def collector_at_rest() -> Generator[None]:
    """Let no collection fall into a measured call; what it leaves is collected after it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def stabilised(*, threads: int | None = None, flush_denormals: bool | None = None) -> Generator[None]:
    """Keep the process as it is for a session of measuring, and put back what was changed, also when something raises.

    Processes are not pinned to a core: the CPUs that this one may use are recorded with the conditions and put back if
    something inside changes them.

    Args:
        threads: of torch, and of numpy's linear algebra between executions; None: as many as there are.
        flush_denormals: count numbers near 0 as 0. Faster where a model makes such numbers, but answers can then differ
            from those of a plain call. None: as it is. Where the CPU cannot do it, ``Conditions.flush_denormals`` says
            so.
    """
    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        undo.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        undo.callback(torch.set_flush_denormal, flushes_denormals())
        undo.enter_context(_frozen())
        if threads is not None:
            torch.set_num_threads(threads)
            undo.enter_context(threadpool_limits(threads, user_api="blas"))  # numpy's own: it would wait for cores
        if flush_denormals is not None:
            torch.set_flush_denormal(flush_denormals)
        yield


def flushes_denormals() -> bool:
    """Whether torch counts float32 numbers near 0 as 0; it can be set, but not asked."""
    return not torch.full((1,), 1e-40).mul(1.0).item()


@contextmanager
def _frozen() -> Generator[None]:
    """Collect once, then keep all that lives out of later collections; nothing if the caller did that already."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
