"""The engine that a user asked for, where the model can run by it."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Literal

from transformers import PreTrainedModel

from chronostat.engine.engine import graphed
from chronostat.engine.objections import why_eager
from chronostat.errors import ModelError

Choice = Literal["eager", "graph", "auto"]


@contextmanager
def running_by(
    asked: Choice,
    model: PreTrainedModel,
    name: str,
    *,
    most_graphs: int,
    try_full: Callable[[], object],
    told: Callable[[str], object] | None = None,
) -> Generator[str | None]:
    """The model runs by the engine that was asked for; ``auto`` is ``graph`` on CUDA where ``full`` can be replayed.

    Args:
        asked: the engine.
        model: runs by it inside.
        name: of the model, for people.
        most_graphs: that are kept.
        try_full: calls ``generate()`` once for a request as it will come, under no knob.
        told: is told of each vision tower and projector that runs eagerly beside the graphs, and why.

    Yields:
        Why the model runs eagerly although ``auto`` would be ``graph`` here; None: it runs as it was asked to.

    Raises:
        ModelError: ``graph`` was asked for, and the model cannot.
    """
    if asked == "eager" or (asked == "auto" and model.device.type != "cuda"):
        yield None
        return
    reason = why_eager(model)
    with ExitStack() as stack:
        if reason is None:
            engine = stack.enter_context(graphed(model, most_graphs=most_graphs))
            try_full()
            ran = engine.last
            reason = "its generate() makes no cache" if ran is None else ran.reason
            if ran is not None and reason is None and told is not None:
                for path, why in ran.encoded.reasons.items():
                    told(f"{path} of {name} runs eagerly beside the graphs: {why}")
        if reason is not None:
            stack.close()
        if reason is not None and asked == "graph":
            raise ModelError(f"{name} cannot run by the engine 'graph': {reason}; ask for 'auto' or 'eager'")
        yield reason
