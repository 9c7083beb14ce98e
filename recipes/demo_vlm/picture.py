"""The picture of the README: four scenes with a question each, and the cheapest setting that answers it right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from recipes.demo_vlm.gap import setting_text
from recipes.demo_vlm.table import FULL, Setting

from chronostat import records
from chronostat.data.quality import exact
from chronostat.data.samples import Sample
from chronostat.errors import DataError
from chronostat.execution.execute import execute, request_for
from chronostat.models.load import Vlm

KINDS_SHOWN = ("background", "read", "gap", "total")  # one of each: a glance, small print, reasoning, both
_NEW_TOKENS = 8
_SCENE_PX = 256
_MARGIN_PX = 16
_TEXT_PX = 96


class Panel(NamedTuple):
    """A scene, its question, and the cheapest setting whose answer is right, with its share of full prefill."""

    image: Image.Image
    question: str
    answer: str
    setting: Setting
    share: float


def choose_panels(vlm: Vlm, samples: Sequence[Sample], share: Mapping[Setting, float]) -> list[Panel]:
    """For each kind shown, the first sample that full answers right and (the first kind apart) the cheapest does not.

    Raises:
        DataError: the samples hold none for a kind.
    """
    order = sorted(share, key=lambda setting: share[setting])
    panels = []
    for kind in KINDS_SHOWN:
        for sample in (sample for sample in samples if sample.kind == kind):
            easy = kind != KINDS_SHOWN[0] and _is_right(vlm, sample, order[0])
            if not easy and _is_right(vlm, sample, FULL):
                setting = next(setting for setting in order if _is_right(vlm, sample, setting))
                panels.append(
                    Panel(sample.load_images()[0], sample.prompt, sample.references[0], setting, share[setting])
                )
                break
        else:
            raise DataError(
                f"none of {len(samples)} samples of kind {kind} needs more than the cheapest setting; show more"
            )
    return panels


def _is_right(vlm: Vlm, sample: Sample, setting: Setting) -> bool:
    tokens, top_k, skipped = setting
    applied = records.Setting(vision_tokens=tokens, moe_topk=top_k, block_skip=skipped)
    request = request_for(sample, vlm.processor, exact)
    return execute(vlm.model, request, setting=applied, max_new_tokens=_NEW_TOKENS).quality == 1.0


def draw_picture(path: Path, panels: Sequence[Panel]) -> None:
    """Writes the panels side by side."""
    width = len(panels) * (_SCENE_PX + _MARGIN_PX) + _MARGIN_PX
    canvas = Image.new("RGB", (width, _SCENE_PX + 2 * _MARGIN_PX + _TEXT_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for number, panel in enumerate(panels):
        left = _MARGIN_PX + number * (_SCENE_PX + _MARGIN_PX)
        canvas.paste(panel.image.resize((_SCENE_PX, _SCENE_PX), Image.Resampling.NEAREST), (left, _MARGIN_PX))
        first, _, blocks = setting_text(panel.setting).rpartition(", ")
        lines = [panel.question, f"{panel.answer}", first, f"{blocks}: {panel.share:.0%} of full prefill"]
        for row, line in enumerate(lines):
            font, colour = _fitting(draw, line), "black" if row < 2 else "#1f5fa8"
            draw.text((left, _SCENE_PX + 2 * _MARGIN_PX + 21 * row - 6), line, font=font, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)


def _fitting(draw: ImageDraw.ImageDraw, line: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The default font, in the largest of a few sizes in which the line is not wider than a scene."""
    sizes = (15, 13, 11, 10)
    fonts = [ImageFont.load_default(size) for size in sizes]
    return next((font for font in fonts if draw.textlength(line, font=font) <= _SCENE_PX), fonts[-1])
