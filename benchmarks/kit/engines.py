"""Settings by each engine: one model executes them eagerly and replayed, inside one run."""

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

import torch
from transformers import GenerationConfig

from benchmarks.kit.blocks import Row, shuffled
from benchmarks.kit.models import BuiltModel
from chronostat.engine import Engine
from chronostat.errors import MeasurementError
from chronostat.execution.execute import BatchRequest, execute
from chronostat.records import Setting, StageTiming

ENGINES = ("eager", "graph")
_REPLAYS = 20


class Arm(NamedTuple):
    """One setting by one engine."""

    engine: str
    setting: str

    @property
    def label(self) -> str:
        """Its name in the rows."""
        return f"{self.engine}: {self.setting}"


LATENCIES = ("prefill_ms", "llm_prefill_ms", "decode_ms_per_token", "total_ms")


class Runner:
    """Executes arms of one model with answers of one length."""

    def __init__(self, built: BuiltModel, tiles: int, new_tokens: int, engine: Engine) -> None:
        self._built, self._new_tokens, self._engine = built, new_tokens, engine
        self._request = BatchRequest(batch=built.batch(tiles), id="benchmark")

    def timing(self, arm: Arm) -> StageTiming:
        """One execution.

        Raises:
            MeasurementError: its stages were not seen, its answer has another length, or it ran by another engine.
        """
        if arm.engine == "eager":
            with self._engine.paused():
                return self._execute(arm)
        timing = self._execute(arm)
        ran = self._engine.last
        if ran is None or ran.way != "graph":
            raise MeasurementError(f"{arm.label} ran eagerly: {ran and ran.reason}")
        return timing

    def replays_ms(self) -> dict[str, float]:
        """Device time of what the last execution replayed, alone: medians."""
        found: dict[str, float] = {}
        for program in self._engine.kept[-2:]:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * _REPLAYS)]
            program.room.position.fill_(program.room.length - 1)
            for start, end in zip(events[::2], events[1::2], strict=True):
                start.record()
                program.replay.run()
                end.record()
            torch.cuda.synchronize()
            found[program.step] = median(s.elapsed_time(e) for s, e in zip(events[::2], events[1::2], strict=True))
        return found

    def block(self, arms: Mapping[str, Arm], index: int) -> Row:
        """Each arm once, in random order of its own: latencies and ``vision_ms`` by label."""
        timings = {label: self.timing(arms[label]) for label in shuffled(arms, 2, index)}
        kinds = (*LATENCIES, "vision_ms")
        return {label: {kind: getattr(timing, kind) for kind in kinds} for label, timing in timings.items()}

    def _execute(self, arm: Arm) -> StageTiming:
        setting = Setting() if arm.setting == "full" else Setting.parse(arm.setting)
        return timing_of(self._built, self._request, setting, self._new_tokens, arm.label)


def timing_of(built: BuiltModel, request: BatchRequest, setting: Setting, new_tokens: int, label: str) -> StageTiming:
    """One execution with an answer of a certain length.

    Raises:
        MeasurementError: its stages were not seen, or its answer has another length; names the arm by its label.
    """
    execution = execute(
        built.model,
        request,
        setting=setting,
        max_new_tokens=new_tokens,
        generation_config=GenerationConfig(do_sample=False),
    )
    timing = execution.timing
    assert timing is not None, "execute() raises where it does not measure"
    if timing.source != "measured" or timing.new_tokens != new_tokens:
        raise MeasurementError(f"{label}: {timing.new_tokens} tokens; {timing.unseen}")
    return timing
