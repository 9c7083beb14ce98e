"""The report as a reader sees it, opened from the disk without a network."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from PIL import Image

from chronostat.report import write_picture, write_report
from stand_ins.sample_run import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # a real browser takes half a minute

FIGURES = ("accuracy", "choices-by-budget", "choices-by-kind", "stages", "learning", "anchors")


class Opened(NamedTuple):
    """A page with what it complained about and what it asked the network for."""

    page: "Page"
    complaints: list[str]
    requests: list[str]


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole run."""
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Opens a file in a context of its own, without a network."""
    contexts = []

    def open_page(path: Path, *, width: int = 1280, scheme: str = "light", touch: bool = False) -> Opened:
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=touch, offline=True)
        contexts.append(context)
        page = context.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        if path.suffix == ".html":
            page.wait_for_selector("html[data-drawn]", state="attached", timeout=30_000)
        return Opened(page, complaints, requests)

    yield open_page
    for context in contexts:
        context.close()


def pixels(content: bytes) -> np.ndarray:
    """A screenshot as numbers, shape [height, width, 3]."""
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"), dtype=np.int16)


def test_every_figure_is_drawn_without_a_network_or_a_complaint(open_page: Open, report: Path) -> None:
    opened = open_page(report)
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    for name in FIGURES:
        assert opened.page.locator(f"#{name} svg.main-svg").count() > 0, name


def test_what_the_figures_show(open_page: Open, report: Path) -> None:
    page = open_page(report).page
    assert page.locator("#accuracy .scatterlayer .trace").count() == 6
    assert (
        page.locator("#accuracy .scatterlayer path.point").count() == 16 + 3 * 6
    )  # settings; three policies, 6 budgets
    assert page.locator("#stages .barlayer .trace").count() == 6
    assert page.locator("#stages .barlayer .point").count() == 6 * 5
    assert page.locator("#learning .scatterlayer .trace").count() == 4
    assert page.locator("#choices-by-kind .heatmaplayer image").count() == 1
    legend = page.locator("#accuracy .legendtext").all_text_contents()
    assert "controller, mean budgets" in legend
    assert "controller, deadline budgets" in legend


def test_the_page_is_not_blank(open_page: Open, report: Path) -> None:
    page = open_page(report).page
    for name in FIGURES:
        image = pixels(page.locator(f"#{name}").screenshot())
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20, name
    assert pixels(page.screenshot()).std() > 10


@pytest.mark.parametrize("width", [320, 375, 768])
def test_a_narrow_screen_scrolls_only_downwards(open_page: Open, report: Path, width: int) -> None:
    page = open_page(report, width=width, touch=True).page
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().right))"
    )
    assert widest <= width + 1


def test_a_finger_on_a_figure_scrolls_the_page(open_page: Open, report: Path) -> None:
    dragging = "document.getElementById('accuracy').layout.dragmode"
    page = open_page(report).page
    assert page.evaluate(dragging) is not False
    assert page.locator("#accuracy .modebar-btn").count() > 0
    page = open_page(report, width=375, touch=True).page
    assert page.locator(".modebar-btn").count() == 0  # without a mouse the bar would always cover the legend
    assert page.evaluate("matchMedia('(pointer: coarse)').matches")
    assert page.evaluate(dragging) is False


def test_dark_readers_get_a_dark_page(open_page: Open, report: Path) -> None:
    page = open_page(report, scheme="dark").page
    assert pixels(page.screenshot()).mean() < 80
    assert page.evaluate("document.getElementById('accuracy').layout.font.color") == "#e8eaed"
    page.emulate_media(color_scheme="light")
    page.wait_for_function("document.getElementById('accuracy').layout.font.color === '#1c2024'")
    assert pixels(page.screenshot()).mean() > 180


@pytest.mark.parametrize(("until", "figures"), [("train", 3), ("measure", 2)])
def test_parts_of_a_run(open_page: Open, tmp_path: Path, until: str, figures: int) -> None:
    opened = open_page(write_report(write_run(tmp_path / "run", until=until)))
    assert opened.complaints == []
    assert opened.page.locator("div.plot .main-svg").first.is_visible()
    assert opened.page.locator("div.plot").count() == figures
    assert opened.page.get_by_text("Nothing was validated yet").is_visible()


def test_the_picture_is_drawn(open_page: Open, tmp_path: Path) -> None:
    opened = open_page(write_picture(write_run(tmp_path / "run"), tmp_path / "picture.svg"))
    assert opened.complaints == []
    image = pixels(opened.page.screenshot())
    vermillion = np.abs(image - np.array([0xD5, 0x5E, 0x00])).max(axis=2) < 8
    assert vermillion.sum() > 200  # three stars of about 130 pixels
