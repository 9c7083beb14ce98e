"""Numbers as text, each with its unit; what is not there says so and is never a 0."""

import math
from collections.abc import Callable, Mapping, Sequence

from chronostat.records import Estimate, LatencyMetric, Setting, Source, knob_value
from chronostat.runs.store import NoiseFloor

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
