"""What is measured, and for how long? The parts by name, with the requests and seconds that bound each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.serving.deadlines import deadlines
from benchmarks.serving.endurance import endurance
from benchmarks.serving.kill import kill
from benchmarks.serving.load import load
from benchmarks.serving.overhead import overhead
from benchmarks.serving.task import Task
from benchmarks.serving.versus import versus


class Part(NamedTuple):
    """A part, and what bounds it unless the command line does: requests of it or of each row, seconds of asking."""

    run: Callable[[Task], dict[str, Any]]
    requests: int
    seconds: float


PARTS: Mapping[str, Part] = {
    "overhead": Part(overhead, 200, 90.0),
    "deadlines": Part(deadlines, 250, 360.0),
    "endurance": Part(endurance, 2000, 300.0),
    "kill": Part(kill, 50, 30.0),
    "versus": Part(versus, 300, 100.0),
    "load": Part(load, 100, 60.0),
}
