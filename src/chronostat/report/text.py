"""Numbers as text, each with its unit; what is not there says so and is never a 0."""

import math
from collections.abc import Callable, Mapping, Sequence

from chronostat.records import Estimate, LatencyMetric, PolicyScore, Setting, Source, knob_value
from chronostat.runs.store import NoiseFloor, Selected

ABSENT = "not recorded"

METRIC_DEFINITIONS: dict[LatencyMetric, str] = {
    "prefill_ms": "the image encoding and the prefill forward with its head, inside generate(); set-up and sampling "
    "excluded",
    "llm_prefill_ms": "from the entry of the first decoder block that runs to the exit of the last one, in the prefill",
    "ttft_ms": "from the entry of generate() to its first token",
    "total_ms": "from the entry of generate() to its return",
    "request_ms": "preprocessing, controller and generate(): what a caller waits",
}
SOURCE_DEFINITIONS: dict[Source, str] = {
    "measured": "every latency was measured inside the one real generate() call, stage by stage",
    "total_only": "the stages of this model could not be seen: only the whole generate() call was measured, and every "
    "latency on this page is that total",
    "estimated": "latencies on this page are estimates learned from stored measurements, not measurements",
}


def milliseconds(value: float | None) -> str:
    """``12.3 ms``."""
    return _number(value, lambda number: f"{number:.1f} ms")


def percent(value: float | None) -> str:
    """A share as ``81.2 %``."""
    return _number(value, lambda share: f"{100 * share:.1f} %")


def seconds(value: float | None) -> str:
    """``61.0 s``."""
    return _number(value, lambda number: f"{number:.1f} s")


def count(value: float | None) -> str:
    """``1,234``."""
    return _number(value, lambda number: f"{number:,.0f}")


def percent_interval(estimate: Estimate) -> str:
    """A share with its 95 % interval, ``81.2 % [77.1, 85.3]``."""
    return _interval(estimate, lambda share: f"{100 * share:.1f}", " %")


def ms_interval(estimate: Estimate) -> str:
    """Milliseconds with their 95 % interval, ``12.3 ms [11.6, 13.0]``."""
    return _interval(estimate, lambda number: f"{number:.1f}", " ms")


def points(value: float | None) -> str:
    """A difference of shares in points, ``1.2``."""
    return _number(value, lambda share: f"{100 * share:.1f}")


def points_interval(estimate: Estimate | None) -> str:
    """A difference of shares in points with its 95 % interval, ``+5.0 [1.6, 8.4]``."""
    return "" if estimate is None else _interval(estimate, lambda share: f"{100 * share:+.1f}", "")


def noise_floor_text(noise: NoiseFloor) -> str:
    """What ``full`` differs by from itself, in words; that it is not known where no pair could be used."""
    used, left_out = noise.comparison.pairs, noise.asked - noise.comparison.pairs
    known = f"half of {count(used)} pairs of full against itself differ by more than {percent(noise.spread)}"
    if not math.isfinite(noise.spread):
        known = "not known"
    return f"{known}; {count(left_out)} of {count(noise.asked)} pairs left out"


def forecast_text(known: Mapping[str, float], noise: NoiseFloor | None) -> str:
    """How far the forecast of a latency is from what was measured then, beside measuring once.

    Args:
        known: ``forecast`` of ``run.json``.
        noise: pairs of ``full`` against itself: what one earlier measurement of the same would have been off by.
    """
    executions, error = count(known["executions"]), percent(known["error"])
    said = f"half of {executions} executions differ by more than {error} from a forecast that did not know them"
    if noise is None or not math.isfinite(noise.spread):
        return said
    return f"{said}; from one earlier measurement of the same by more than {percent(noise.spread)} (noise floor)"


def learned_share_text(selection: Mapping[str, Selected]) -> str | None:
    """Under which budgets the controller looks at the request; None for a verdict of an older version."""
    known = {budget: each.learned for budget, each in selection.items() if each.learned is not None}
    if not known:
        return None
    plain = [budget for budget, learned in known.items() if not learned]
    said = f"the controller looks at the request under {len(known) - len(plain)} of {len(known)} budgets"
    if not plain:
        return said
    return (
        f"{said}; under {', '.join(plain)} the evidence for that is not there, and it plays what is best for all alike"
    )


def choice_text(selected: Selected) -> str:
    """How the best fixed setting under a budget was found, and whether the controller looks at the request."""
    if selected.n is not None:
        return (
            f"best fixed setting found on {count(selected.n)} validation samples (accuracy there "
            f"{percent(selected.validation_accuracy)})"
        )
    looks = "looks at the request" if selected.learned else "treats all requests alike"
    return (
        f"best fixed setting by all evidence (accuracy expected of it {percent(selected.expected)}; the truly best one "
        f"may be {points(selected.shortfall)} points better); the controller {looks}"
    )


def unmeetable_text(score: PolicyScore) -> str:
    """What is said where no measured setting brings some samples within a deadline."""
    return (
        f"{count(score.unmeetable)} of {count(score.samples)} samples take longer under every setting that was "
        "measured on them, so they count for no policy here"
    )


def setting_lines(setting: str) -> str:
    """A setting with one knob to a line, for narrow labels."""
    return "<br>".join(setting.split())


def is_full(setting: Setting, space: Mapping[str, Sequence[float | list[int]]]) -> bool:
    """Whether every knob that is named stands at its first level, the full one."""
    return all(knob in space and value == knob_value(space[knob][0]) for knob, value in setting.items())


def _number(value: float | None, write: Callable[[float], str]) -> str:
    if value is None:
        return ABSENT
    return write(value) if math.isfinite(value) else "invalid"


def _interval(estimate: Estimate, write: Callable[[float], str], unit: str) -> str:
    point, low, high = (_number(value, write) for value in (estimate.point, estimate.low, estimate.high))
    return f"{point}{unit} [{low}, {high}]"
