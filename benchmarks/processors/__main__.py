"""What does ``vision_tokens`` do with each kind of processor?

``python -m benchmarks.processors``: two pictures of noise go through the real processor of each family and through
``execute`` with a thin random model (``families/``), under each value that is offered by default. The table holds what
was asked for, what the language model read, and the size of what entered the vision tower. Families that are refused
come last, with their reason. Nothing is timed.
"""

from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.kit.estimates import markdown_table
from benchmarks.processors.families import FAMILIES, Pair
from chronostat.data.samples import Sample
from chronostat.errors import KnobError
from chronostat.execution.execute import SampleRequest, execute
from chronostat.knobs.registry import applied, find_knob
from chronostat.measure.arguments import IMAGE_KEYS
from chronostat.models.load import load_vlm
from chronostat.models.prepare import prepare
from chronostat.records import Setting

SHAPES = ((900, 600), (224, 224))
HEAD = (
    "processor",
    "asked for",
    "read of 900 x 600",
    "read of 224 x 224",
    "pixels of 900 x 600: full, fewest or most",
    "what is set",
)
PROMPT = "a b c"


def main() -> None:
    """Print the table and the refusals."""
    torch.set_num_threads(1)
    bundled = load_vlm(device="cpu")
    pairs = [("the bundled model", Pair(processor=bundled.processor, model=bundled.model))]
    pairs += [(name, family.build()) for name, family in FAMILIES.items()]
    rows: list[tuple[str, ...]] = []
    refused: list[str] = []
    for name, pair in pairs:
        try:
            rows.append((name, *row_of(pair)))
        except KnobError as error:
            refused.append(f"* {name}: {str(error).removeprefix('vision_tokens: ')}")
    print(markdown_table([HEAD, *rows]))
    print("\nRefused:\n")
    print("\n".join(refused))


def row_of(pair: Pair) -> tuple[str, ...]:
    """One family's cells after its name.

    Raises:
        KnobError: the family has no such knob; says why.
    """
    knob = find_knob("vision_tokens", pair.model, pair.processor)
    large, small = (picture(*shape) for shape in SHAPES)
    settings = [Setting(vision_tokens=value) for value in knob.levels]
    read = [", ".join(str(tokens_read(pair, image, setting)) for setting in settings) for image in (large, small)]
    second, full = cast("int", knob.levels[1]), cast("int", knob.full)
    other = settings[1] if second > full else settings[-1]  # the most, where all others are more than full
    pixels = ", ".join(pixel_shape(pair, large, setting) for setting in (settings[0], other))
    return ", ".join(map(str, knob.levels)), *read, pixels, knob.mechanism


def picture(width: int, height: int) -> Image.Image:
    """Noise, the same at each call."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def tokens_read(pair: Pair, image: Image.Image, setting: Setting) -> int | None:
    """Image tokens of one measured execution."""
    sample = Sample(id="picture", split="test", prompt=PROMPT, references=(), load_images=lambda: (image,))
    request = SampleRequest(sample=sample, images=(image,), processor=pair.processor, quality=None)
    return execute(pair.model, request, setting=setting, max_new_tokens=2).image_tokens


def pixel_shape(pair: Pair, image: Image.Image, setting: Setting) -> str:
    """Shape of the tensor of pixels that the model is given."""
    with applied(setting, pair.model, pair.processor) as image_arguments:
        batch = prepare(
            pair.processor,
            [image],
            PROMPT,
            device=torch.device("cpu"),
            dtype=torch.float32,
            image_arguments=image_arguments,
        )
    pixels: Tensor = next(batch[key] for key in IMAGE_KEYS if key in batch)
    return " x ".join(str(size) for size in pixels.shape if size > 1)


if __name__ == "__main__":
    main()
