"""The calls that are held against each other: bare, measured, and with marks at the edges of their parts."""

from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from benchmarks.kit.batches import Batch
from benchmarks.kit.listening import Edges, listening
from benchmarks.kit.models import BuiltModel
from chronostat.errors import MeasurementError
from chronostat.machine.disturbance import Watch
from chronostat.machine.stabilise import collector_at_rest
from chronostat.measure.clock import Clock
from chronostat.measure.generate import Measured, measure_generate
from chronostat.models.prepare import count_image_tokens
from chronostat.records import StageTiming

STAGES = tuple(field.name for field in fields(StageTiming) if field.name.endswith("_ms"))


class Caller:
    """One model with one request: all calls generate the same number of tokens.

    Args:
        built: the model.
        batch: the request.
        new_tokens: length of each answer.
        clock: of the model's device.
        static_cache: generate with a static cache, whose decode steps the library compiles on a GPU.
    """

    def __init__(
        self, built: BuiltModel, batch: Batch, new_tokens: int, clock: Clock, *, static_cache: bool = False
    ) -> None:
        self.built, self.batch, self.clock = built, batch, clock
        self.new_tokens = new_tokens
        self._static = {"cache_implementation": "static"} if static_cache else {}

    def config(self, new_tokens: int | None = None) -> GenerationConfig:
        """Greedy decoding to a fixed length; the model itself has no end of sequence."""
        return GenerationConfig(do_sample=False, max_new_tokens=new_tokens or self.new_tokens, **self._static)

    def generate(self, new_tokens: int | None = None, **more: Any) -> Tensor:  # noqa: ANN401 - generate()'s own
        """A plain ``generate()``: prompt and answer."""
        model: Any = self.built.model
        return model.generate(**self.batch, generation_config=self.config(new_tokens), **more)

    @property
    def image_tokens(self) -> int | None:
        """Of the request."""
        return count_image_tokens(self.built.model, self.batch)

    @property
    def prompt_tokens(self) -> int:
        """Of the request, those of the image among them."""
        return self.batch["input_ids"].shape[1]

    def bare_ms(self) -> float:
        """Host time of a plain ``generate()``, waited for at both ends.

        Raises:
            MeasurementError: the answer has another length.
        """
        self.clock.synchronize()
        start_ns = self.clock.host_ns()
        sequences = self.generate()
        self.clock.synchronize()
        taken_ms = self.clock.host_ms_since(start_ns)
        self._check(sequences.shape[1] - self.prompt_tokens)
        return taken_ms

    def prepared_ms(self) -> float:
        """``bare_ms`` right after what a measured call reads of the machine: whether that slows the call itself."""
        with collector_at_rest(), Watch(self.built.model.device):
            return self.bare_ms()

    def measured(self, clock: Clock | None = None, new_tokens: int | None = None) -> tuple[Measured, float]:
        """A measured call, and host time of all of it: hooks set and removed.

        Raises:
            MeasurementError: the answer has another length.
        """
        self.clock.synchronize()
        start_ns = self.clock.host_ns()
        length = new_tokens or self.new_tokens
        measured = measure_generate(
            self.built.model,
            self.batch,
            max_new_tokens=length,
            generation_config=self.config(length),
            clock=clock or self.clock,
        )
        whole_ms = self.clock.host_ms_since(start_ns)
        self._check(len(measured.output_ids), length)
        return measured, whole_ms

    def parts(self) -> dict[str, float]:
        """Where the time of a call goes that is neither prefill nor decode; the parts sum up to the total.

        ``set_up_ms``: from the entry of ``generate()`` to the first prefill call. ``between_ms``: between its calls
        (images, then the forward). ``first_token_ms``: from its end to token mark 1. ``after_ms``: from the last mark
        to the return.
        """
        clock = self.clock
        edges = Edges(clock)
        with listening(self.built.model, edges):
            clock.restart()
            clock.synchronize()
            start_ns, entry = clock.host_ns(), clock.mark()
            self.generate()
            clock.synchronize()
            total_ms = clock.host_ms_since(start_ns)
        calls = [(clock.between_ms(entry, start), clock.between_ms(entry, end)) for start, end in edges.calls]
        first, last = (clock.between_ms(entry, edges.tokens[index]) for index in (0, -1))
        prefill_ms = sum(end - start for start, end in calls)
        return {
            "set_up_ms": calls[0][0],
            "between_ms": calls[-1][1] - calls[0][0] - prefill_ms,
            "first_token_ms": first - calls[-1][1],
            "after_ms": total_ms - last,
            "prefill_ms": prefill_ms,
            "decode_ms": last - first,
            "total_ms": total_ms,
        }

    def _check(self, found: int, wanted: int | None = None) -> None:
        wanted = wanted or self.new_tokens
        if found != wanted:
            raise MeasurementError(
                f"an answer of {found} tokens where {wanted} were asked for; arms cannot be compared"
            )


def plain_timing(measured: Measured) -> dict[str, Any]:
    """Stages by name, and what makes them doubtful."""
    timing = measured.timing
    row: dict[str, Any] = {name: getattr(timing, name) for name in (*STAGES, "decode_steps")}
    if timing.source != "measured":
        row |= {"source": timing.source, "unseen": timing.unseen}
    disturbed = getattr(measured, "disturbed", None)
    return row if disturbed is None else {**row, "disturbed": disturbed}
