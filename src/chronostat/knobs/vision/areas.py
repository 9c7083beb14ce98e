"""Processors that scale an image until it has no more than some number of pixels or tokens."""

from math import ceil, isqrt
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image
from transformers import PreTrainedModel

from chronostat.knobs.vision.mechanism import Arguments, Mechanism, span, steps
from chronostat.knobs.vision.reading import Reader

_PROBE_SIDE = 8  # image tokens along the side of the square that is tried
_frames: WeakKeyDictionary[Any, tuple[tuple[int, ...], int]] = WeakKeyDictionary()


def pixel_area(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """Qwen2-VL and relatives: ``size`` holds areas in pixels, one token is a square of merged patches.

    Asking for n tokens gives at most n, unless the image is longer than n times its height: a side has a token at
    least. Below twice the fewest, small images are enlarged less than by default, so as not to exceed n.
    """
    patch, merge = reader.count("patch_size"), reader.count("merge_size")
    shortest, longest = reader.edge("shortest_edge"), reader.edge("longest_edge")
    if patch is None or merge is None or shortest is None or longest is None or reader.takes("max_image_tokens"):
        return None
    if reader.takes("spatial_patch_size"):
        return None  # HunYuan-VL adds tokens for each row of the image
    pixels = (patch * merge) ** 2 * _counted_frames(reader, patch * merge, merge)

    def arguments(tokens: int) -> Arguments:
        enlarged_to = min(shortest, max(1, (tokens // 2 - 1) * pixels))
        return {"size": {"shortest_edge": enlarged_to, "longest_edge": tokens * pixels}}

    return span(
        says=f"size of {reader.owner}, areas in pixels, {pixels} a token",
        full=max(1, longest // pixels),
        least=max(1, shortest // pixels),
        arguments=arguments,
    )


def _counted_frames(reader: Reader, side: int, merge: int) -> int:
    """How often the pixels of one image count against the limit: some processors count an image as a short video.

    Tried on a square of 8 x 8 tokens that is just allowed where pixels count once.
    """
    ip = reader.image_processor
    frames = reader.count("temporal_patch_size") or 1
    if frames == 1:
        return 1
    key = (side, merge, frames)
    if _frames.get(ip, (None,))[0] != key:
        edge = _PROBE_SIDE * side
        tried = ip(
            images=[Image.new("RGB", (edge, edge))],
            size={"shortest_edge": side * side, "longest_edge": edge * edge},
            return_tensors="pt",
        )
        tokens = int(tried["image_grid_thw"][0].prod()) // merge**2
        _frames[ip] = (key, 1 if tokens == _PROBE_SIDE**2 else frames)
    return _frames[ip][1]


def token_limit(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """GLM-5 and Muse: ``max_image_tokens`` counts merged patches, so it is the number itself."""
    most = reader.count("max_image_tokens")
    if most is None or reader.count("merge_size") is None or reader.takes("max_tiles"):
        return None
    fewest = reader.count("min_image_tokens")

    def arguments(tokens: int) -> Arguments:
        lower = {} if fewest is None else {"min_image_tokens": min(fewest, max(1, tokens // 2 - 1))}
        return {"max_image_tokens": tokens, **lower}

    return span(says=f"max_image_tokens of {reader.owner}", full=most, least=fewest or 1, arguments=arguments)


def longest_edge(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """Pixtral, Mistral 3: the longer side of the image is at most ``size["longest_edge"]``; one token is a patch.

    The number is that of a square; an image twice as wide as high gets half of it.
    """
    longest, patch = reader.edge("longest_edge"), getattr(reader.processor, "patch_size", None)
    merge = getattr(reader.processor, "spatial_merge_size", None)
    if longest is None or type(patch) is not int or type(merge) is not int or reader.edge("shortest_edge") is not None:
        return None
    side = patch * merge

    def arguments(tokens: int) -> Arguments:
        return {"size": {"longest_edge": isqrt(tokens) * side}}

    return span(
        says=f"size of {reader.owner}, the longest edge in pixels, {side} a token",
        full=ceil(longest / side) ** 2,
        least=1,
        arguments=arguments,
    )


_SOFT_TOKENS = (70, 140, 280, 560, 1120)  # what Gemma 4's image processor accepts; it names them in its error only


def soft_tokens(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """Gemma 4: ``max_soft_tokens``, one of five numbers."""
    most = reader.count("max_soft_tokens")
    if most not in _SOFT_TOKENS:
        return None
    allowed = {count: count for count in _SOFT_TOKENS if count <= most}
    return steps(
        says=f"max_soft_tokens of {reader.owner}",
        full=most,
        tokens=allowed,
        arguments=lambda count: {"max_soft_tokens": count},
    )
