"""From the marks of one ``generate()`` to its stages, or to the reason why there are none.

Definitions: docs/definitions.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from chronostat.measure.clock import Clock, Mark
from chronostat.measure.hooks import BLOCKS, ENCODE, FORWARD, PROJECTOR, VISION, StageRecorder
from chronostat.measure.spans import Interval, length, length_outside
from chronostat.records import StageTiming

TOLERANCE_MS = 0.1  # by which device and host may disagree
TOLERANCE_SHARE = 1e-3  # of a long call: NTP slews the host's clock by up to 500 ppm, and a GPU's own runs free


@dataclass(frozen=True, kw_only=True)
class CallOutcome:
    """What one ``generate()`` call was, and what the clock says of it as a whole.

    Attributes:
        entry: mark at the entry of ``generate()``.
        total_ms: host time of the whole call.
        new_tokens: length of the answer in tokens.
        sees_image: whether the batch holds an image that has to be encoded.
        one_path: False for beams and assisted decoding, where decode per token has no meaning.
        doubts: what else speaks against the numbers.
    """

    entry: Mark
    total_ms: float
    new_tokens: int
    sees_image: bool
    one_path: bool
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Waterfall:
    """When everything happened that was seen, in milliseconds since the entry of ``generate()``.

    Attributes:
        spans_ms: of each stage its calls before the first token, as (start, end).
        tokens_ms: the token marks.
    """

    spans_ms: Mapping[str, tuple[Interval, ...]] = field(default_factory=dict[str, tuple[Interval, ...]])
    tokens_ms: tuple[float, ...] = ()


def waterfall_of(recorder: StageRecorder, clock: Clock, entry: Mark) -> Waterfall:
    """Read the marks, after the synchronize."""
    return Waterfall(
        spans_ms={
            stage: tuple((clock.between_ms(entry, start), clock.between_ms(entry, end)) for start, end in span.finished)
            for stage, span in recorder.spans.items()
        },
        tokens_ms=tuple(clock.between_ms(entry, mark) for mark in recorder.tokens.marks),
    )


def timing_of(recorder: StageRecorder, seen: Waterfall, call: CallOutcome) -> StageTiming:
    """The stages of the call.

    Returns:
        Source ``measured``, or ``total_only`` where a stage that must have run was not seen as often as it ran, or
        where the numbers contradict each other.
    """
    marks = seen.tokens_ms
    steps = len(marks) - 1 if not call.one_path and marks else max(call.new_tokens - 1, 0)
    unseen = _unseen(recorder, call)
    timing = None if unseen else _stages(seen, call, steps)
    reasons = [*call.doubts, *([f"not seen: {', '.join(unseen)}"] if unseen else [])]
    if timing is not None:
        reasons += _contradictions(seen, timing)
    if timing is None or reasons:
        return StageTiming(
            source="total_only",
            total_ms=call.total_ms,
            new_tokens=call.new_tokens,
            decode_steps=steps,
            unseen="; ".join(reasons),
        )
    return timing


def _stages(seen: Waterfall, call: CallOutcome, steps: int) -> StageTiming:
    vision, projector, blocks = (list(seen.spans_ms.get(stage, ())) for stage in (VISION, PROJECTOR, BLOCKS))
    prefill = [*seen.spans_ms.get(ENCODE, ()), *seen.spans_ms.get(FORWARD, ()), *vision, *projector]
    prefill_ms, decode_ms = length(prefill), seen.tokens_ms[-1] - seen.tokens_ms[0]
    return StageTiming(
        source="measured",
        total_ms=call.total_ms,
        new_tokens=call.new_tokens,
        decode_steps=steps,
        ttft_ms=seen.tokens_ms[0],
        prefill_ms=prefill_ms,
        vision_ms=length_outside(vision, projector) if vision else None,
        projector_ms=length(projector) if projector else None,
        llm_prefill_ms=length(blocks),
        prefill_rest_ms=length_outside(prefill, [*vision, *projector, *blocks]),
        decode_ms=decode_ms if steps else None,
        decode_ms_per_token=decode_ms / steps if steps and call.one_path else None,
        other_ms=call.total_ms - prefill_ms - decode_ms,
    )


def _unseen(recorder: StageRecorder, call: CallOutcome) -> list[str]:
    """What must have happened and was not seen as often as it did."""
    spans, with_parts = recorder.spans, recorder.with_parts
    must_run = [FORWARD, BLOCKS, *(stage for stage in with_parts if call.sees_image or stage == ENCODE)]
    reasons = [stage for stage, span in spans.items() if span.missed or span.depth > 0]
    if call.sees_image and not with_parts:
        why = "found neither a vision tower nor a projector; name them with model.layout or --layout"
        reasons.append(f"{VISION} ({why})")
    reasons += [stage for stage in must_run if not spans[stage].finished and stage not in reasons]
    silent = {stage for stage, module in recorder.must_be_called if module not in spans[stage].called}
    reasons += sorted(silent.difference(reasons)) if call.sees_image else []
    reasons += [f"{stage}, which ran in another thread" for stage, span in spans.items() if span.elsewhere]
    passes, forwards = len(spans[BLOCKS].finished), len(spans[FORWARD].finished)
    if 0 < passes < forwards:
        reasons.append(f"{BLOCKS} in {forwards - passes} of {forwards} forwards")
    marks = len(recorder.tokens.marks)
    if not marks or (call.one_path and marks != call.new_tokens):
        reasons.append(f"{marks} token marks for {call.new_tokens} tokens")
    return reasons


def _contradictions(seen: Waterfall, timing: StageTiming) -> list[str]:
    """Where the numbers cannot all be true: a stage that ends before it starts, or parts longer than the whole."""
    first, last = seen.tokens_ms[0], seen.tokens_ms[-1]
    tolerance_ms = max(TOLERANCE_MS, TOLERANCE_SHARE * timing.total_ms)
    reasons = [
        f"{stage} lies from {start:.3f} to {end:.3f} ms, the first token at {first:.3f} ms"
        for stage, spans in seen.spans_ms.items()
        for start, end in spans
        if not -TOLERANCE_MS <= start <= end <= first + TOLERANCE_MS
    ]
    if any(later < earlier for earlier, later in zip(seen.tokens_ms, seen.tokens_ms[1:], strict=False)):
        reasons.append("the token marks are not in the order of the tokens")
    outside_ms = length_outside(seen.spans_ms[BLOCKS], seen.spans_ms[FORWARD])
    if outside_ms > TOLERANCE_MS:
        reasons.append(f"the {BLOCKS} ran {outside_ms:.3f} ms outside the {FORWARD}")
    if last > timing.total_ms + tolerance_ms:
        reasons.append(f"the last token lies {last:.3f} ms after the entry, the return {timing.total_ms:.3f} ms")
    if timing.other_ms is not None and timing.other_ms < -tolerance_ms:
        reasons.append(
            f"the stages take {timing.total_ms - timing.other_ms:.3f} ms together, the whole call {timing.total_ms:.3f}"
        )
    return [f"the stages contradict each other: {reason}" for reason in reasons]
