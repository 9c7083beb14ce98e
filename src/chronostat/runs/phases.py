"""What each phase of a run took, and how often ``generate()`` was called in it, counted apart from what is stored."""

import functools
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from chronostat.execution.trials import TrialRunner
from chronostat.measure.hooks import restorer
from chronostat.progress import Progress
from chronostat.records import Phase
from chronostat.runs.store import RunStore


class CallCounter:
    """Counts the calls of a model's own ``generate()``, apart from whatever is stored.

    Attributes:
        calls: all of them.
        unfinished: those since the last trial that was stored; more than 0 only where a trial was interrupted.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.unfinished = 0

    def trial_stored(self) -> None:
        """The calls so far belong to stored trials."""
        self.unfinished = 0

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Generator[None]:
        """Count for the length of the ``with``."""
        watched: Any = model
        original, restore = watched.generate, restorer(model, "generate")

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passes through whatever generate takes
            self.calls += 1
            self.unfinished += 1
            return original(*args, **kwargs)

        watched.generate = counted
        try:
            yield
        finally:
            restore()


@contextmanager
def counted_phase(
    store: RunStore, progress: Progress, counter: CallCounter, runner: TrialRunner, phase: Phase, length: str
) -> Generator[None]:
    """Record what a phase took, also when it is interrupted; the processes of one run are added up.

    A process that was killed told nobody how many calls it made, so a phase that it was in gets no count any more.
    """
    earlier = store.metadata.get("phases", {}).get(phase)
    if earlier is None:
        earlier = {} if store.trials(phase) else {"generate_calls": 0}
    else:  # until this process has ended nobody knows its calls
        _record_phase(store, phase, {key: value for key, value in earlier.items() if key != "generate_calls"})
    start_s, start_calls = runner.elapsed_s, counter.calls
    progress.begin(phase, length)
    try:
        yield
    finally:
        took_s, calls = runner.elapsed_s - start_s, counter.calls - start_calls
        progress.end(f"{calls:,} executions in {took_s:.0f} s")
        took = {"seconds": took_s, "generate_calls": calls - counter.unfinished}
        if counter.unfinished or "unfinished_calls" in earlier:
            took["unfinished_calls"] = counter.unfinished  # of trials that were interrupted, so that none was stored
        sums = {key: round(earlier.get(key, 0) + value, 1) for key, value in took.items()}
        if "generate_calls" not in earlier:
            del sums["generate_calls"]
        _record_phase(store, phase, sums)


def _record_phase(store: RunStore, phase: Phase, metadata: Mapping[str, float]) -> None:
    store.update_metadata(phases={**store.metadata.get("phases", {}), phase: metadata})
