"""The interactive figures."""

from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from chronostat.records import Estimate, PolicyScore, Setting, Step
from chronostat.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from chronostat.report.plot import PageFigure, page_figure
from chronostat.report.run.gather import (
    STAGES,
    KnobChoices,
    RunView,
    choices_by_budget,
    choices_by_kind,
    learning_steps,
    middle_budget,
    stage_means,
)
from chronostat.report.text import is_full, setting_lines

_STAGE_COLOURS = (BLUE, SKY, VERMILLION, ORANGE, GREEN, GREY)
_SMOOTHED_SHARE = 20  # the curve is smoothed over a twentieth of the steps


def page_figures(run: RunView) -> list[PageFigure]:
    """The figures that this run has numbers for, in the order of the page."""
    made = (make(run) for make in _FIGURES)
    return [figure for figure in made if figure is not None]


def accuracy_figure(run: RunView) -> PageFigure | None:
    """Accuracy against latency of everything that was judged."""
    if run.validation is None:
        return None
    figure = go.Figure()
    scores = run.validation.scores
    _add_fixed_settings(figure, run)
    _add_scores(
        figure, "best fixed of a budget", [s for s in scores if s.policy == "best fixed"], BLUE, "circle-open", 15
    )
    _add_scores(figure, "static mix of two", [s for s in scores if s.policy == "static mix"], ORANGE, "diamond", 10)
    ours = [score for score in scores if score.policy == "controller"]
    for kind, symbol, colour in (("mean", "star", VERMILLION), ("deadline", "triangle-up-open", PURPLE)):
        judged = [score for score in ours if score.budget.kind == kind]
        _add_scores(figure, f"controller, {kind} budgets", judged, colour, symbol, 13, line=True)
    figure.update_xaxes(title_text=f"mean {run.metric} + controller_ms (ms)", rangemode="tozero")
    figure.update_yaxes(title_text="accuracy", ticksuffix=" %")
    n = run.validation.samples
    return page_figure(
        figure,
        name="accuracy",
        title="Accuracy against latency",
        summary=f"Scatter plot of accuracy against mean latency on {n} samples: {len(run.validation.fixed)} fixed "
        f"settings, static mixes, and the controller at {len(ours)} budgets. The verdict table holds the same numbers.",
        caption=f"Higher and further left is better. Accuracy in percent, latency in milliseconds, bars are 95 % "
        f"intervals; {n} samples that nothing was trained or selected on. Source: validation.json, {run.source}.",
        height_px=520,
    )


def _add_fixed_settings(figure: go.Figure, run: RunView) -> None:
    assert run.validation is not None
    fixed = run.validation.fixed
    full = [score for score in fixed if is_full(Setting.parse(score.setting), run.space)]
    for name, group, colour, symbol in (
        ("fixed setting", [score for score in fixed if score not in full], GREY, "circle"),
        ("full", full, GREEN, "square"),
    ):
        labels = [score.setting for score in group]
        points = [(score.mean_ms, score.accuracy) for score in group]
        _add_points(figure, name, points, labels, colour=colour, symbol=symbol, size=9)


def _add_scores(
    figure: go.Figure,
    name: str,
    scores: Sequence[PolicyScore],
    colour: str,
    symbol: str,
    size: int,
    *,
    line: bool = False,
) -> None:
    labels = [f"{score.budget}: {setting_lines(score.settings[0][0])}" for score in scores]
    points = [(score.mean_ms, score.accuracy) for score in scores]
    _add_points(figure, name, points, labels, colour=colour, symbol=symbol, size=size, line=line)


def _add_points(
    figure: go.Figure,
    name: str,
    points: Sequence[tuple[Estimate, Estimate]],
    labels: Sequence[str],
    *,
    colour: str,
    symbol: str,
    size: int,
    line: bool = False,
) -> None:
    if not points:
        return
    latency, accuracy = zip(*points, strict=True)
    figure.add_scatter(
        name=name,
        x=[estimate.point for estimate in latency],
        y=[100 * estimate.point for estimate in accuracy],
        error_x=_bars(latency, 1, colour),
        error_y=_bars(accuracy, 100, colour),
        text=list(labels),
        hovertemplate="%{text}<br>%{x:.1f} ms, %{y:.1f} %",
        mode="lines+markers" if line else "markers",
        line={"color": colour, "width": 1.5, "dash": "dot"},
        marker={"color": colour, "symbol": symbol, "size": size, "line": {"width": 2, "color": colour}},
    )


def _bars(estimates: Sequence[Estimate], scale: float, colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (estimate.high - estimate.point) for estimate in estimates],
        "arrayminus": [scale * (estimate.point - estimate.low) for estimate in estimates],
        "color": colour,
        "thickness": 1,
        "width": 0,
    }


def stage_figure(run: RunView) -> PageFigure | None:
    """Where the time goes."""
    phases, means = stage_means(run)
    if not means:
        return None
    figure = go.Figure()
    labels = [_setting_label(run, mean.setting) for mean in means]
    for position, (stage, colour) in enumerate(zip(STAGES, _STAGE_COLOURS, strict=True)):
        shares = [100 * mean.means_ms[position] / sum(mean.means_ms) for mean in means]
        figure.add_bar(
            name=f"{stage}_ms",
            x=[mean.means_ms[position] for mean in means],
            y=labels,
            customdata=shares,
            hovertemplate="%{x:.2f} ms, %{customdata:.1f} % of total_ms",
            orientation="h",
            marker={"color": colour},
        )
    figure.update_layout(barmode="relative")
    figure.update_xaxes(title_text="mean time inside generate() (ms)")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return page_figure(
        figure,
        name="stages",
        title="Where the time goes",
        summary=f"Stacked bars of the mean milliseconds of {', '.join(STAGES)} for {len(means)} settings.",
        caption="Mean milliseconds of each stage of total_ms for full and the settings that were used most; "
        f"{sum(mean.n for mean in means)} executions of: {phases}. Source: the stored executions, {run.source}.",
        height_px=160 + 76 * len(means),
    )


def _setting_label(run: RunView, setting: str) -> str:
    lines = setting_lines(setting)
    if setting == "full" or not is_full(Setting.parse(setting), run.space):
        return lines
    return f"full:<br>{lines}"


def budget_choice_figure(run: RunView) -> PageFigure | None:
    """What the controller chose, by budget."""
    choices = choices_by_budget(run)
    if not choices.columns:
        return None
    return page_figure(
        _choice_map(choices, "budget as a fraction of full"),
        name="choices-by-budget",
        title="Knob choices by budget",
        summary="Heat map: for each knob value the share of requests that got it, by budget.",
        caption="Percent of the judged requests for which the controller chose the knob value. Source: the stored "
        "decisions.",
        height_px=160 + 30 * len(choices.values),
    )


def kind_choice_figure(run: RunView) -> PageFigure | None:
    """What the controller chose, by kind of question."""
    budget = middle_budget(run)
    if budget is None:
        return None
    choices = choices_by_kind(run, budget)
    return page_figure(
        _choice_map(choices, f"kind of question, budget {budget}"),
        name="choices-by-kind",
        title="Knob choices by kind of question",
        summary=f"Heat map: for each knob value the share of requests that got it, by kind, under {budget}.",
        caption=f"Percent of the judged requests under the budget {budget} of full. The controller does not see the "
        "kind. Source: the stored decisions.",
        height_px=160 + 30 * len(choices.values),
    )


def _choice_map(choices: KnobChoices, across: str) -> go.Figure:
    percents = [[100 * share for share in row] for row in choices.shares]
    figure = go.Figure()
    figure.add_heatmap(
        name="chosen",
        x=[column.replace(" ", "<br>") for column in choices.columns],
        y=choices.values,
        z=percents,
        zmin=0,
        zmax=100,
        colorscale="Cividis",
        texttemplate="%{z:.0f}",
        hovertemplate="%{y}<br>%{x}: %{z:.1f} %",
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure.update_xaxes(title_text=across, title_standoff=14, type="category", automargin=True)
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return figure


def learning_figure(run: RunView) -> PageFigure | None:
    """Quality and latency while learning."""
    steps = learning_steps(run)
    if not steps:
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    window = max(1, len(steps) // _SMOOTHED_SHARE)
    curves: tuple[tuple[str, Callable[[Step], float], str], ...] = (
        ("quality", lambda step: step.quality, BLUE),
        ("latency / full", lambda step: step.latency_fraction, VERMILLION),
    )
    executed_s = [step.executed_ms / 1e3 for step in steps]
    for row, (name, value, colour) in enumerate(curves, start=1):
        raw = [value(step) for step in steps]
        points = {"color": colour, "size": 4, "opacity": 0.35}
        figure.add_scatter(
            name=f"{name}, each step", x=executed_s, y=raw, mode="markers", marker=points, row=row, col=1
        )
        line = {"color": colour, "width": 2.5}
        smooth = _rolling_mean(raw, window)
        figure.add_scatter(
            name=f"{name}, mean of {window}", x=executed_s, y=smooth, mode="lines", line=line, row=row, col=1
        )
        figure.update_yaxes(title_text=name, row=row, col=1)
    figure.update_xaxes(title_text="seconds spent inside executions", row=2, col=1)
    return page_figure(
        figure,
        name="learning",
        title="Learning curve",
        summary=f"Two curves over {len(steps)} training steps: mean quality of the drawn settings, and their latency "
        "as a fraction of full.",
        caption=f"Mean over the settings drawn in a step, exploration included; quality in [0, 1], {run.metric} + "
        f"controller_ms as a fraction of full; lines are means of {window} steps. Source: the stored steps, "
        f"{run.source}.",
        height_px=480,
    )


def _rolling_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` values, of fewer at the start."""
    spans = (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    return [sum(span) / len(span) for span in spans]


_FIGURES: tuple[Callable[[RunView], PageFigure | None], ...] = (
    accuracy_figure,
    stage_figure,
    budget_choice_figure,
    kind_choice_figure,
    learning_figure,
)
