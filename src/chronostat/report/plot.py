"""One interactive figure: what it is, and the layout that all of them share."""

from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class PageFigure:
    """One figure of the page.

    Attributes:
        name: id of its element.
        title: heading.
        summary: what it shows, for readers who do not see it.
        caption: units and source.
        height_px: of the plot.
        json: data and layout for plotly.js, safe inside a script element.
    """

    name: str
    title: str
    summary: str
    caption: str
    height_px: int
    json: Markup


def page_figure(figure: go.Figure, *, name: str, title: str, summary: str, caption: str, height_px: int) -> PageFigure:
    """A figure in the layout of the page."""
    figure.update_layout(
        template="none",
        height=height_px,
        margin={"l": 60, "r": 12, "t": 12, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "traceorder": "normal"},
        hoverlabel={"namelength": -1},
    )
    text = figure.to_json(engine="json")
    assert text is not None
    return PageFigure(
        name=name,
        title=title,
        summary=summary,
        caption=caption,
        height_px=height_px,
        json=Markup(text.replace("<", "\\u003c")),  # now nothing in it can close the script element
    )
