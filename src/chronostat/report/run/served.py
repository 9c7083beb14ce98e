"""What a server did: deadlines kept, settings chosen, stages over time, and what was not answered."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb
import plotly.graph_objects as go

from chronostat.compare.statistics import share_interval
from chronostat.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from chronostat.report.plot import PageFigure, page_figure
from chronostat.report.run.gather import RunView
from chronostat.report.run.tables import PageTable, Row
from chronostat.report.text import count, milliseconds, percent, percent_interval
from chronostat.serving.log import is_served, read_requests

_MOST_BUDGETS, _BINS = 16, 48
_STAGES = (
    *(("queue_ms", GREY), ("image_ms", "#C7CCD4"), ("preprocess_ms", PURPLE), ("controller_ms", "#000000")),
    *(("vision_ms", BLUE), ("projector_ms", SKY), ("llm_prefill_ms", VERMILLION), ("prefill_rest_ms", ORANGE)),
    *(("decode_ms", GREEN), ("other_ms", "#7A5C00")),
)
_SOURCE = "Source: the log of requests"


def served_tables(run: RunView) -> dict[str, PageTable]:
    """The tables of a run that served, by name."""
    if not is_served(run.store.folder):
        return {}
    made = (_by_budget(run), _by_setting(run), _not_answered(run))
    return {table.name: table for table in made if table.rows}


def served_figures(run: RunView) -> list[PageFigure]:
    """The figures of a run that served."""
    if not is_served(run.store.folder):
        return []
    return [figure for figure in (_stages_over_time(run),) if figure is not None]


def _query(run: RunView, sql: str) -> list[tuple[Any, ...]]:
    connection = duckdb.connect()
    connection.register("requests", read_requests(run.store.folder))
    return connection.sql(sql).fetchall()


class _Budget(NamedTuple):
    kind: str | None
    ms: float | None
    requests: int
    kept: int
    unmeetable: int
    mean_ms: float
    p95_ms: float
    queue_ms: float


def _budgets(run: RunView) -> Iterator[_Budget]:
    rows = _query(
        run,
        "SELECT budget_kind, budget_ms, count(*), count(*) FILTER (kept), count(*) FILTER (NOT meetable), "
        "avg(charged_ms), quantile_cont(charged_ms, 0.95), avg(queue_ms) FROM requests WHERE status = 200 "
        f"GROUP BY ALL ORDER BY count(*) DESC, budget_kind, budget_ms LIMIT {_MOST_BUDGETS}",
    )
    yield from (_Budget(*row) for row in rows)


def _by_budget(run: RunView) -> PageTable:
    rows = [
        Row(
            cells=[
                "none" if each.kind is None else f"{each.kind} {milliseconds(each.ms)}",
                count(each.requests),
                _kept(each),
                count(each.unmeetable),
                milliseconds(each.mean_ms),
                milliseconds(each.p95_ms),
                milliseconds(each.queue_ms),
            ]
        )
        for each in _budgets(run)
    ]
    return PageTable(
        name="served",
        title="Budgets kept while serving",
        caption=f"Answers by budget, the {_MOST_BUDGETS} most frequent. What is compared with a budget lies from the "
        f"receipt of a request to the end of {run.metric}, waiting included; brackets are 95 % intervals. A mean is "
        "kept if the mean is at most the budget. Not meetable: no setting was known to keep it when the request's turn "
        f"came. {_SOURCE}.",
        heads=("budget", "answers", "kept", "not meetable", "mean from receipt", "p95", "mean queue"),
        rows=rows,
    )


def _kept(each: _Budget) -> str:
    if each.kind is None or each.ms is None:
        return ""
    if each.kind == "mean":
        return f"{'yes' if each.mean_ms <= each.ms else 'no'}, {percent(each.mean_ms / each.ms)} of it"
    return percent_interval(share_interval(each.kept, each.requests))


def _by_setting(run: RunView) -> PageTable:
    rows = _query(
        run,
        "SELECT setting, count(*), count(*) / sum(count(*)) OVER (), avg(request_ms), avg(vision_ms), avg(prefill_ms), "
        "avg(decode_ms), avg(image_tokens) FROM requests WHERE status = 200 GROUP BY setting ORDER BY 2 DESC, 1",
    )
    return PageTable(
        name="served-settings",
        title="Settings chosen while serving",
        caption=f"Means over answers; request_ms is preprocessing, controller and generate(). {_SOURCE}.",
        heads=("setting", "answers", "share", "request_ms", "vision_ms", "prefill_ms", "decode_ms", "image tokens"),
        rows=[
            Row(cells=[setting, count(n), percent(share), *map(milliseconds, stages), count(tokens)])
            for setting, n, share, *stages, tokens in rows
        ],
    )


def _not_answered(run: RunView) -> PageTable:
    rows = _query(
        run,
        "SELECT status, coalesce(code, 'the client went away'), count(*) FROM requests WHERE status <> 200 "
        "GROUP BY ALL ORDER BY 3 DESC, 1",
    )
    return PageTable(
        name="not-answered",
        title="Requests without an answer",
        caption=f"By status of HTTP; 499: the client went away. {_SOURCE}.",
        heads=("status", "reason", "requests"),
        rows=[Row(cells=[str(status), str(code), count(n)]) for status, code, n in rows],
    )


def _stages_over_time(run: RunView) -> PageFigure | None:
    """Mean stages in up to ``_BINS`` spans of equal length."""
    moment = "epoch(CAST(received AS TIMESTAMPTZ))"
    ((first_s, last_s),) = _query(run, f"SELECT min({moment}), max({moment}) FROM requests WHERE status = 200")
    if first_s is None:
        return None
    span_s = max(last_s - first_s, 1.0) * 1.001 / _BINS  # a little more, so that the last answer is in the last one
    means = ", ".join(f"avg(coalesce({stage}, 0))" for stage, _ in _STAGES)
    rows = _query(
        run,
        f"SELECT floor(({moment} - {first_s}) / {span_s}) AS span, count(*), {means} FROM requests "
        "WHERE status = 200 GROUP BY span ORDER BY span",
    )
    figure = go.Figure()
    for position, (stage, colour) in enumerate(_STAGES, start=2):
        figure.add_bar(
            name=stage,
            x=[(row[0] + 0.5) * span_s / 60 for row in rows],
            y=[row[position] for row in rows],
            customdata=[row[1] for row in rows],
            hovertemplate="%{y:.2f} ms, mean of %{customdata} answers",
            marker={"color": colour},
        )
    figure.update_layout(barmode="relative", bargap=0.05)
    figure.update_xaxes(title_text="minutes since the first answer")
    figure.update_yaxes(title_text="mean time of an answer (ms)")
    return page_figure(
        figure,
        name="served-stages",
        title="Stages of answers over time",
        summary=f"Stacked bars of the mean milliseconds of each stage of {sum(row[1] for row in rows)} answers in "
        f"{len(rows)} spans of time.",
        caption="Mean milliseconds from receipt on: waiting, decoding pictures, preprocessing, choosing, and stages "
        f"of generate(). {_SOURCE}, {run.source}.",
        height_px=420,
    )
