"""A survey as text: each row a name and one cell for each arm."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from chronostat.records import Comparison, Estimate
from chronostat.report.text import ms_interval, percent
from chronostat.studies.survey import STAGES, Column, Shot, Survey
from chronostat.studies.survey.result import PERCENTILES

Row = tuple[str, tuple[str, ...]]
NOTHING = "-"
_MEMORY = {"allocated on the device": "peak device memory", "resident in the process": "peak process memory"}


def title(survey: Survey) -> str:
    """What was measured, how often, and what the cells are."""
    first = survey.columns[0]
    models = " and ".join(dict.fromkeys(column.model for column in survey.columns))
    sources = " and ".join(dict.fromkeys(column.source for column in survey.columns))
    number = _range([len(column.shots) for column in survey.columns])
    used = _range([len({shot.request for shot in column.shots}) for column in survey.columns])
    several = len(survey.requests) > 1
    repeats = "1 repeat" if number == "1" else f"{number} repeats"
    what = f"{number} executions of {used} of {len(survey.requests)} requests" if several else repeats
    device = first.conditions.cpu if first.conditions.device == "cpu" else first.conditions.device
    return f"{models}, {sources}: median in ms of {what} [95 % interval, from 6 on]; {device}"


def stage_rows(survey: Survey) -> list[Row]:
    """Median of each stage under each arm."""
    return [(name, tuple(_median(column.stage(name)) for column in survey.columns)) for name in STAGES]


def summary_rows(survey: Survey) -> list[Row]:
    """What a caller waits in rare cases, tokens, memory, answers."""
    columns = survey.columns
    rows = [(f"request_ms p{share}", tuple(_percentile(column, share) for column in columns)) for share in PERCENTILES]
    rows += [
        ("tokens in", tuple(_range([shot.execution.prompt_tokens for shot in c.shots]) for c in columns)),
        ("image tokens", tuple(_range([shot.execution.image_tokens for shot in c.shots]) for c in columns)),
        ("tokens out", tuple(_range([shot.timing.new_tokens for shot in c.shots]) for c in columns)),
        (_MEMORY[columns[0].peak_meaning], tuple(_mib(column.peak_mib) for column in columns)),
    ]
    if any(column.compiled for column in columns):
        rows.append(("decode step compiled", tuple("yes" if column.compiled else "no" for column in columns)))
    if len(survey.requests) == 1:
        rows.append(("answer", tuple(column.shots[0].execution.answer or NOTHING for column in columns)))
    elif any(shot.execution.quality is not None for shot in columns[0].shots):
        rows.append(("answers right", tuple(_accuracy(column.shots) for column in columns)))
    return rows


def verdict_rows(survey: Survey) -> list[Row]:
    """Each latency of the arms after the first, against the first; empty for one arm."""
    arms = range(1, len(survey.columns))
    return [
        (name, tuple(_verdict(survey.comparisons[name][arm]) for arm in arms))
        for name in STAGES
        if name in survey.comparisons
        and (name == survey.metric or any(survey.comparisons[name][arm].pairs for arm in arms))
    ]


def condition_rows(survey: Survey) -> list[Row]:
    """The conditions that are known, once where all arms share them."""
    conditions = [asdict(column.conditions) for column in survey.columns]
    rows: list[Row] = []
    for name in conditions[0]:
        values = [each[name] for each in conditions]
        if any(value not in {None, "none", "not recorded"} for value in values):
            cells = tuple(map(str, values))
            rows.append((name, cells[:1] if len(set(cells)) == 1 else cells))
    return rows


def notes(survey: Survey) -> Iterator[str]:
    """What limits the numbers."""
    if survey.interrupted:
        yield "interrupted: this is what was measured until then"
    for column in survey.columns:
        yield from _column_notes(column)
    for arm in range(1, len(survey.columns)):
        yield from _flags(survey, arm)


def judged(survey: Survey) -> str | None:
    """By what was judged, why it ended, and the noise; None for one arm."""
    if survey.ended is None:
        return None
    floor = survey.noise_floor.get(survey.metric)
    noise = ""
    if floor is not None and math.isfinite(floor.spread):
        noise = f"; half of all pairs of {survey.columns[0].name} differ by more than {percent(floor.spread)}"
    valid = any(comparison.verdict != "invalid" for comparison in survey.comparisons[survey.metric].values())
    return f"judged by {survey.metric}: {survey.ended if valid else 'no verdict can be given'}{noise}"


def _column_notes(column: Column) -> Iterator[str]:
    if column.source != "measured":
        yield f"{column.name}: only the whole call was measured ({column.shots[0].timing.unseen})"
    missing = column.requests_without("decode_ms")
    if missing:
        requests = len({shot.request for shot in column.shots})
        yield f"{column.name}: decode_ms is not of {missing} of {requests} requests: an answer had one token"
    for reason, count in column.reasons.items():
        yield f"{column.name}: left out {count} of {len(column.left_out) + len(column.shots)}: {reason}"
    if column.disturbed:
        some = next(shot.execution.disturbed for shot in column.shots if shot.execution.disturbed)
        yield (
            f"{column.name}: {column.disturbed} of {len(column.shots)} were disturbed, for example: {some}; too few "
            "were not, so these count as well; chronostat doctor says what this machine can do"
        )


def _flags(survey: Survey, arm: int) -> Iterator[str]:
    """What flags the comparisons of one arm, each said once."""
    flags: dict[str, list[str]] = {}
    for metric, by_arm in survey.comparisons.items():
        for flag in by_arm[arm].flags:
            if flag != survey.ended and not flag.endswith("left out"):  # both are said elsewhere
                flags.setdefault(flag, []).append(metric)
    for flag, metrics in flags.items():
        which = "all latencies" if 1 < len(metrics) == len(survey.comparisons) else ", ".join(metrics)
        yield f"{survey.columns[arm].name}: {which}: {flag}"


def _median(median: Estimate | None) -> str:
    if median is None:
        return NOTHING
    return ms_interval(median).replace(" ms", "") if math.isfinite(median.low) else f"{median.point:.1f}"


def _percentile(column: Column, share: int) -> str:
    value_ms = column.percentile_ms(share)
    return f"needs {math.ceil(100 / (100 - share))}" if value_ms is None else f"{value_ms:.1f}"


def _range(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    return f"{min(known)}" if min(known) == max(known) else f"{min(known)} to {max(known)}"


def _mib(value_mib: float | None) -> str:
    return NOTHING if value_mib is None else f"{value_mib:,.0f} MiB"


def _accuracy(shots: Sequence[Shot]) -> str:
    known = [shot.execution.quality for shot in shots if shot.execution.quality is not None]
    return percent(sum(known) / len(known)) if known else NOTHING


def _verdict(comparison: Comparison) -> str:
    ratio = comparison.ratio
    if not math.isfinite(ratio.point):
        return comparison.verdict
    bounds = f" [{ratio.low:.3f}, {ratio.high:.3f}]" if math.isfinite(ratio.high) else ""
    return f"{ratio.point:.3f}{bounds} {comparison.verdict}"
