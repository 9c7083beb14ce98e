"""How a number of image tokens per image is asked of each kind of processor.

Every module has one or a few functions that look at what a processor says about itself and return a ``Mechanism``, or
None if the processor is of another kind. ``FAMILIES`` is the order in which they are asked.
"""

from collections.abc import Callable

from transformers import PreTrainedModel, ProcessorMixin

from chronostat.errors import KnobError
from chronostat.knobs.vision.areas import longest_edge, pixel_area, soft_tokens, token_limit
from chronostat.knobs.vision.cross import cross_attended_tiles
from chronostat.knobs.vision.grids import grid_pinpoints
from chronostat.knobs.vision.mechanism import Mechanism
from chronostat.knobs.vision.reading import Reader
from chronostat.knobs.vision.refusal import why_not
from chronostat.knobs.vision.tiles import crops, pan_and_scan, split_images, tiles, tiles_of_tokens

Family = Callable[[Reader, PreTrainedModel], Mechanism | None]

FAMILIES: tuple[Family, ...] = (
    tiles,
    split_images,
    crops,
    tiles_of_tokens,
    pan_and_scan,
    grid_pinpoints,
    cross_attended_tiles,
    token_limit,
    pixel_area,
    longest_edge,
    soft_tokens,
)


def find_mechanism(model: PreTrainedModel, processor: ProcessorMixin | None) -> Mechanism:
    """The mechanism of a model's processor.

    Raises:
        KnobError: there is none; says why.
    """
    if processor is None:
        raise KnobError("vision_tokens: a ready batch has its image tokens already; it takes the processor to change")
    reader = Reader(processor)
    for family in FAMILIES:
        mechanism = family(reader, model)
        if mechanism is not None:
            return mechanism
    raise KnobError(f"vision_tokens: {why_not(reader)}")
