"""Running the same work again: as a CUDA graph, or in plain Python behind the same interface."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch

from chronostat.errors import ChronostatError
from chronostat.measure.clock import Mark

Work = Callable[[], Any]
Marks = tuple[Mark, Mark]


class CannotCapture(ChronostatError):  # noqa: N818 - what it says
    """This work cannot be captured; the reason is the message."""


class Replay(ABC):
    """Work that was captured.

    Attributes:
        output: what the work returns, in whose tensors the result lies after each run; the next one overwrites it.
        marks: entry of the first block and exit of the last one, valid until the next run; None where the hooks of the
            blocks fire at each run.
    """

    output: Any
    marks: Marks | None = None

    @abstractmethod
    def run(self) -> None:
        """Do the work again, on whatever its inputs hold now."""


class Capturing(ABC):
    """How work is captured on a device.

    Attributes:
        fires_hooks: whether hooks of modules fire at each run.
    """

    fires_hooks: bool

    @abstractmethod
    def capture(self, work: Work, beside: Iterable[Replay], marks: list[Mark]) -> Replay:
        """Capture work that has run once before.

        Args:
            work: reads and writes tensors whose addresses stay, and returns one or several.
            beside: what was captured before and still lives.
            marks: where the work puts marks while it is captured.

        Raises:
            CannotCapture: it asks the host for something, or there is too little memory.
        """

    @abstractmethod
    def mark(self) -> Mark | None:
        """A moment inside the work that is being captured; None: hooks fire at each run and take their own."""


class PlainReplay(Replay):
    """Calls the work again."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def run(self) -> None:
        """Call it."""
        self.output = self._work()


class PlainCapturing(Capturing):
    """Replays in plain Python, on any device: the same shapes, caches and masks, nothing saved.

    It is what the engine's rules are tested with where there is no GPU, and what graphs are compared with where there
    is one.
    """

    fires_hooks = True

    def capture(self, work: Work, beside: Iterable[Replay], marks: list[Mark]) -> Replay:
        """Keep the work."""
        return PlainReplay(work)

    def mark(self) -> None:
        """None: hooks fire."""


class GraphReplay(Replay):
    """A CUDA graph."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Any, marks: Marks | None) -> None:  # noqa: ANN401
        self.graph = graph
        self.output = output
        self.marks = marks

    def run(self) -> None:
        """Queue it on the current stream."""
        self.graph.replay()


_streams: dict[torch.device, torch.cuda.Stream] = {}  # one per device: cuBLAS keeps 32 MiB for each that it has seen


class CudaCapturing(Capturing):
    """CUDA graphs of the model's own kernels. All of a model share one pool of memory: one runs at a time.

    Args:
        device: the model's.
    """

    fires_hooks = False

    def __init__(self, device: torch.device) -> None:
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        self._stream = _streams[device]

    def capture(self, work: Work, beside: Iterable[Replay], marks: list[Mark]) -> Replay:
        """Run it once more, on the stream that captures, then capture it."""
        graph = torch.cuda.CUDAGraph()
        pool = next((replay.graph.pool() for replay in beside if isinstance(replay, GraphReplay)), None)
        try:
            self._warm(work)
            marks.clear()
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                output = work()
        except torch.OutOfMemoryError as error:
            raise CannotCapture(f"too little memory for one more graph ({_first_line(error)})") from error
        except RuntimeError as error:  # torch raises this, or a subclass of it, for whatever a graph cannot hold
            raise CannotCapture(f"CUDA cannot capture it: {_first_line(error)}") from error
        return GraphReplay(graph, output, (marks[0], marks[-1]) if marks else None)

    def mark(self) -> torch.cuda.Event:
        """An event that each run of the graph records anew."""
        event = torch.cuda.Event(enable_timing=True, external=True)
        event.record()
        return event

    def _warm(self, work: Work) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


def capturing_on(device: torch.device) -> Capturing:
    """Graphs on CUDA, plain Python elsewhere."""
    return CudaCapturing(device) if device.type == "cuda" else PlainCapturing()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
