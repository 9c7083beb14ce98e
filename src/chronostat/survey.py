"""The stages of one request under some settings, repeated and interleaved: what ``chronostat measure`` shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chronostat.errors import MeasurementError
from chronostat.execution import SampleRequest, execute
from chronostat.knobs import applied
from chronostat.measure.conditions import read_conditions
from chronostat.measure.statistics import median_interval
from chronostat.models.load import Vlm
from chronostat.records import Conditions, Estimate, Execution, Setting, Source

STAGES = (
    "preprocess_ms",
    "vision_ms",
    "projector_ms",
    "llm_prefill_ms",
    "prefill_rest_ms",
    "prefill_ms",
    "ttft_ms",
    "decode_ms",
    "decode_ms_per_token",
    "other_ms",
    "total_ms",
    "request_ms",
)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All repeats of all settings.

    Attributes:
        executions: for each setting its repeats; warm-ups are not among them.
    """

    model: str
    fingerprint: str
    conditions: Conditions
    executions: Mapping[Setting, Sequence[Execution]]

    @property
    def source(self) -> Source:
        """Where the latencies come from.

        Raises:
            MeasurementError: some stages were seen in some repeats only.
        """
        sources: set[Source] = {e.timing.source for repeats in self.executions.values() for e in repeats if e.timing}
        if len(sources) != 1:
            raise MeasurementError(
                f"the repeats do not have one source ({', '.join(sorted(sources))}); their numbers cannot be compared"
            )
        return sources.pop()

    def stage(self, setting: Setting, name: str) -> Estimate | None:
        """Median of a stage with its 95 % interval; None where there is no such stage."""
        values = [_stage_ms(execution, name) for execution in self.executions[setting]]
        seen = [value for value in values if value is not None]
        return median_interval(seen) if len(seen) == len(values) else None

    def to_json(self) -> dict[str, Any]:
        """Plain data: conditions, and every repeat of every setting."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "conditions": asdict(self.conditions),
            "settings": [
                {"setting": str(setting), "executions": [_plain(execution) for execution in repeats]}
                for setting, repeats in self.executions.items()
            ],
        }


def survey(
    vlm: Vlm,
    request: SampleRequest,
    settings: Sequence[Setting],
    *,
    repeats: int,
    max_new_tokens: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Survey:
    """Execute each setting once to warm up, then ``repeats`` times in blocks of random order.

    Args:
        vlm: model and processor.
        request: the one request.
        settings: distinct settings.
        repeats: measured executions of each setting.
        max_new_tokens: longest answer in tokens.
        seed: draws the order.
        advance: called after each execution.

    Raises:
        KnobError: an unknown knob or an illegal value; nothing has been measured then.
        Exception: whatever the model raises.
    """
    for setting in settings:
        with applied(setting, vlm.model, vlm.processor):
            pass
    rng = np.random.default_rng(seed)
    executions: dict[Setting, list[Execution]] = {setting: [] for setting in settings}
    for block in range(repeats + 1):
        for position in rng.permutation(len(settings)).tolist():
            setting = settings[position]
            execution = execute(vlm.model, request, setting=setting, max_new_tokens=max_new_tokens)
            if block:
                executions[setting].append(execution)
            advance()
    return Survey(
        model=vlm.name,
        fingerprint=vlm.fingerprint,
        conditions=read_conditions(vlm.model),
        executions=executions,
    )


def _stage_ms(execution: Execution, name: str) -> float | None:
    if name in {"preprocess_ms", "request_ms"}:
        return getattr(execution, name)
    return getattr(execution.timing, name)


def _plain(execution: Execution) -> dict[str, Any]:
    kept = ("answer", "quality", "preprocess_ms", "request_ms", "prompt_tokens", "image_tokens")
    assert execution.timing is not None, "execute() raises where it does not measure"
    return {**{name: getattr(execution, name) for name in kept}, **asdict(execution.timing)}
