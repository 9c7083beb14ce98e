"""The page of ``chronostat measure`` in a browser without a network."""

import pytest

from chronostat.measure.generate import Waterfall
from chronostat.report.survey import survey_page
from stand_ins.survey_fixtures import a_survey, column, shot, timing

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WATERFALL = Waterfall(
    spans_ms={"vision": ((2.0, 8.0),), "prefill forward": ((11.0, 30.0),), "decoder blocks": ((13.0, 25.0),)},
    tokens_ms=(31.0, 36.0, 42.0),
)


def test_the_waterfall_is_drawn_in_order_and_nothing_is_asked_for(browser, tmp_path):
    drawn = shot(timing(25.0, new_tokens=3, ttft_ms=31.0, decode_ms=11.0), waterfall=WATERFALL)
    file = tmp_path / "stages.html"
    file.write_text(survey_page(a_survey(column(drawn)), "chronostat measure"), encoding="utf-8")
    page, asked, problems = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    lanes = page.locator("[data-lane]")
    names = [lanes.nth(n).get_attribute("data-lane") for n in range(lanes.count())]
    assert names == [
        *("preprocessing", "vision", "decoder blocks", "rest of prefill", "first token", "decode steps", "generate()"),
    ]
    boxes = {name: page.locator(f'[data-lane="{name}"] rect').first.bounding_box() for name in names}
    assert boxes["vision"]["x"] < boxes["decoder blocks"]["x"] < boxes["decode steps"]["x"]
    assert all(box["width"] > 0 for box in boxes.values())
    assert page.locator('[data-lane="decode steps"] rect').count() == 2
    assert page.locator("#stages tbody tr").count() > 12
    assert (asked, problems) == ([file.as_uri()], [])
    page.close()


@pytest.mark.parametrize("width", [320, 400])
def test_on_a_narrow_screen_the_waterfall_scrolls_and_can_be_read(browser, tmp_path, width):
    drawn = shot(timing(25.0, new_tokens=3, ttft_ms=31.0, decode_ms=11.0), waterfall=WATERFALL)
    file = tmp_path / "stages.html"
    file.write_text(survey_page(a_survey(column(drawn)), "chronostat measure"), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    label = page.locator('[data-lane="vision"] text').first.bounding_box()
    assert label["height"] > 9  # pixels
    page.close()
