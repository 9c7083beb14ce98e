"""Figures of how the machine behaved: drift with its interval, and the noise floor."""

import plotly.graph_objects as go

from chronostat.records import Estimate
from chronostat.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from chronostat.report.plot import PageFigure, page_figure
from chronostat.report.run.gather import RunView
from chronostat.report.run.machine import AnchorPoint, drift_curve, machine_time, measured_twice


def machine_figures(run: RunView) -> list[PageFigure]:
    """The figures that this run has numbers for."""
    return [figure for figure in (drift_figure(run), noise_figure(run)) if figure is not None]


def drift_figure(run: RunView) -> PageFigure | None:
    """How the machine drifted."""
    time = machine_time(run)
    if not time.anchors:
        return None
    full_ms, curve = drift_curve(run, time.anchors)
    figure = go.Figure()
    _add_band(figure, [anchor.at_s for anchor in time.anchors], full_ms, curve)
    phases = dict.fromkeys(anchor.phase for anchor in time.anchors)
    for phase, colour in zip(phases, (BLUE, ORANGE, GREEN, PURPLE, SKY), strict=False):
        _add_anchors(figure, phase, [anchor for anchor in time.anchors if anchor.phase == phase], colour)
    if time.known:
        figure.add_scatter(
            name="known at the time",
            x=[known.at_s for known in time.known],
            y=[full_ms * known.drift for known in time.known],
            mode="lines",
            line={"color": GREY, "width": 1.5, "dash": "dot"},
        )
    figure.update_xaxes(title_text="time since the run began (s)")
    figure.update_yaxes(title_text=f"{run.metric} of full (ms)", rangemode="tozero")
    return page_figure(
        figure,
        name="anchors",
        title="Drift of the machine",
        summary=f"{len(time.anchors)} executions of full over the time of the run, by phase, with a smooth curve "
        "through them, its 95 % interval, and the curve that was known at the time.",
        caption=f"{run.metric} of the setting full in milliseconds: each anchor as it was measured, and the drift "
        "estimated from all of them with its 95 % interval; samples differ, so single points scatter. Dotted: what was "
        "known when a trial began, from the anchors before it. Rewards use "
        f"{_reward_latency(run)} latency. Source: the stored executions, {run.source}.",
        height_px=380,
    )


def _reward_latency(run: RunView) -> str:
    config = run.metadata.get("config") or {}
    name = (config.get("train") or {}).get("latency", "raw or drift-corrected")
    return str(name).replace("_", "-")


def _add_band(figure: go.Figure, at_s: list[float], full_ms: float, curve: list[Estimate]) -> None:
    for name, bound, fill in (("low", "low", None), ("95 % interval", "high", "tonexty")):
        figure.add_scatter(
            name=name,
            x=at_s,
            y=[full_ms * getattr(each, bound) for each in curve],
            mode="lines",
            line={"width": 0, "color": VERMILLION},
            fill=fill,
            fillcolor="rgba(213, 94, 0, 0.18)",
            showlegend=fill is not None,
            hoverinfo="skip",
        )
    figure.add_scatter(
        name="drift",
        x=at_s,
        y=[full_ms * each.point for each in curve],
        mode="lines",
        line={"width": 2.5, "color": VERMILLION},
    )


def _add_anchors(figure: go.Figure, phase: str, points: list[AnchorPoint], colour: str) -> None:
    figure.add_scatter(
        name=phase,
        x=[point.at_s for point in points],
        y=[point.latency_ms for point in points],
        mode="markers",
        marker={"color": colour, "size": 5, "opacity": 0.5},
    )


def noise_figure(run: RunView) -> PageFigure | None:
    """What the machine makes of no difference at all."""
    pairs = measured_twice(run)
    if not pairs:
        return None
    figure = go.Figure()
    for name, hit, colour, symbol in (("undisturbed", False, BLUE, "circle"), ("disturbed", True, ORANGE, "x")):
        shown = [(i, pair) for i, pair in enumerate(pairs, start=1) if pair.disturbed == hit]
        if shown:
            figure.add_scatter(
                name=name,
                x=[i for i, _ in shown],
                y=[100 * (pair.ratio - 1) for _, pair in shown],
                text=[pair.sample for _, pair in shown],
                hovertemplate="%{text}: %{y:.1f} %",
                mode="markers",
                marker={"color": colour, "size": 7, "symbol": symbol},
            )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_xaxes(title_text="pair, in the order they ran")
    figure.update_yaxes(title_text="later / earlier - 1", ticksuffix=" %")
    return page_figure(
        figure,
        name="noise",
        title="Noise floor: full against itself",
        summary=f"{len(pairs)} pairs of executions of full on one sample each: by how much the later one took longer.",
        caption=f"A/A: {run.metric} of full executed twice on one judged sample, later over earlier less 1, in "
        f"percent. Whatever lies here is noise. Source: the stored executions, {run.source}.",
        height_px=300,
    )
