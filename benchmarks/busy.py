"""CPUs that are kept busy on purpose.

Where two CPUs share a core, one of them is up to 1.7 times as fast while the other rests, and whoever else works on the
machine decides when. A CPU whose neighbour always works is slower, but stays as it is: what is compared on it meets the
same machine.
"""

import os
import subprocess
import sys
from collections.abc import Collection, Generator
from contextlib import contextmanager

_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
while os.getppid() == int(sys.argv[2]):
    sum(range(100_000))
"""


@contextmanager
def busy(cpus: Collection[int]) -> Generator[None]:
    """One process that computes on each of these CPUs, until the block or this process ends.

    Args:
        cpus: numbers of CPUs; none of them may be one that the caller runs on.

    Raises:
        ValueError: the caller runs on one of them.
    """
    if shared := set(cpus) & os.sched_getaffinity(0):
        raise ValueError(f"CPUs {sorted(shared)} cannot be kept busy: this process runs on them; start it with taskset")
    processes = [subprocess.Popen([sys.executable, "-c", _SPIN, str(cpu), str(os.getpid())]) for cpu in cpus]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
