"""The page: everything inlined in one file."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from chronostat.files import write_whole
from chronostat.records import Estimate
from chronostat.report.run.figures import page_figures
from chronostat.report.run.gather import RunView, look_at
from chronostat.report.run.machine_figures import machine_figures
from chronostat.report.run.machine_tables import machine_tables
from chronostat.report.run.served import served_figures, served_tables
from chronostat.report.run.tables import page_tables
from chronostat.report.templating import environment
from chronostat.report.text import (
    ABSENT,
    METRIC_DEFINITIONS,
    SOURCE_DEFINITIONS,
    count,
    forecast_text,
    learned_share_text,
    milliseconds,
    noise_floor_text,
    points_interval,
)
from chronostat.runs.store import RunStore
from chronostat.serving.log import is_served

REPORT = "report.html"


def write_report(store: RunStore) -> Path:
    """Write ``report.html`` into the run directory: one file that needs no network and no other file.

    Returns:
        Path of the page.

    Raises:
        UnlikeConditions: the run mixes sources, metrics or conditions.
        StoreError: the run cannot be read or the page cannot be written.
    """
    path = store.folder / REPORT
    write_whole(path, _page(look_at(store)).encode())
    return path


def _page(run: RunView) -> str:
    figures = [*served_figures(run), *page_figures(run), *machine_figures(run)]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=f"Chronostat: {run.store.folder.resolve().name}",
            folder=run.store.folder.name or ".",
            run=run,
            metadata=dict(_metadata(run)),
            source_definition=SOURCE_DEFINITIONS[run.source],
            conclusions=list(_conclusions(run)),
            missing=_missing(run),
            tables=served_tables(run) | page_tables(run) | machine_tables(run),
            figures={figure.name: figure for figure in figures},
            config=json.dumps(run.metadata.get("config") or {}, indent=2, ensure_ascii=False),
            plotly=Markup(get_plotlyjs()) if figures else None,
        )
    )


def _metadata(run: RunView) -> Iterator[tuple[str, str]]:
    metadata = run.metadata
    model: Mapping[str, Any] = metadata.get("model") or {}
    yield "model", f"{model.get('name', ABSENT)}, {count(model.get('parameters'))} parameters"
    yield "fingerprint", str(model.get("fingerprint", ABSENT))
    yield "metric", f"{run.metric}: {METRIC_DEFINITIONS[run.metric]}"
    yield "full costs", _full_ms(run)
    conditions: Mapping[str, Any] = metadata.get("conditions") or {}
    yield "machine", ", ".join(str(conditions.get(key, ABSENT)) for key in ("machine", "cpu", "device"))
    yield "started", str(metadata.get("started", ABSENT))
    yield "command", str(metadata.get("command", ABSENT))
    yield "seed", str(metadata.get("seed", ABSENT))
    yield "version", f"chronostat {metadata.get('version', ABSENT)}"
    noise = run.validation.noise if run.validation else None
    if noise is not None:
        yield "noise floor", noise_floor_text(noise)
    if forecast := metadata.get("forecast"):
        yield "forecast of latency", forecast_text(forecast, noise)
    if share := learned_share_text(run.validation.selection if run.validation else {}):
        yield "learned share", share
    low_high = metadata.get("budget_range")
    if low_high:
        yield "budgets", f"drawn from {low_high[0]:.2f} to {low_high[1]:.2f} of full while training"


def _full_ms(run: RunView) -> str:
    measured: Mapping[str, float] = run.metadata.get("full_ms") or {}
    if not measured:
        return ABSENT
    values = ", ".join(f"{milliseconds(value)} ({phase})" for phase, value in measured.items())
    return f"{values}: median {run.metric} of the anchors; budgets are fractions of it"


def _conclusions(run: RunView) -> Iterator[str]:
    """One sentence a budget: the controller against the best fixed setting."""
    scores = run.validation.scores if run.validation else ()
    kept = {score.budget: score.kept for score in scores if score.policy == "controller"}
    compared = run.validation.comparisons if run.validation else ()
    verdicts = {each.budget: each.accuracy for each in compared if each.policy == "best fixed"}
    for rival in scores:
        if rival.policy != "best fixed" or rival.gain is None or rival.budget not in kept:
            continue
        budget = rival.budget
        verdict = verdicts.get(str(budget)) or _verdict(rival.gain)
        yield (
            f"{budget}: the controller is {points_interval(rival.gain)} points from the best fixed setting: "
            f"{verdict}; the {budget.kind} budget was {'kept' if kept[budget] else 'NOT kept'}."
        )


def _verdict(gain: Estimate) -> str:
    if not math.isfinite(gain.low + gain.high):
        return "invalid"
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "undecided"


def _missing(run: RunView) -> list[str]:
    """What has not happened yet, and how to make it happen; a run that served is complete."""
    if is_served(run.store.folder):
        return []
    missing: list[str] = []
    if not run.store.table("steps").num_rows:
        missing.append("Nothing was trained in this run, so there is no learning curve.")
    if run.validation is None:
        missing.append(
            "Nothing was validated yet, so there is no verdict: run chronostat validate on this run, then write the "
            "report again."
        )
    return missing
