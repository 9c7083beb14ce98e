"""Processors that cut an image into tiles of one size and add a smaller picture of the whole."""

from collections.abc import Mapping
from itertools import product
from math import ceil
from typing import Any

from transformers import PreTrainedModel

from chronostat.knobs.vision.mechanism import Arguments, Mechanism, span_levels, steps
from chronostat.knobs.vision.reading import Reader


def tiles(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """InternVL, GOT-OCR, Aya, Ovis 2, Llama 4: at most ``max_patches`` tiles, each of t tokens.

    More than one tile come with a thumbnail: n tiles give (n + 1) t tokens, one gives t. Where the processor does not
    cut by itself (``crop_to_patches``), full is t and the other values are more.
    """
    most = reader.count("max_patches")
    optional = reader.takes("crop_to_patches")
    if most is None or not (optional or reader.takes("resize_to_max_canvas")) or reader.takes("tile_size"):
        return None
    each = _tokens_per_tile(reader)
    if each is None:
        return None
    least = max(1, reader.count("min_patches") or 1)
    tokens = {count: each * (count + 1 if count > 1 else 1) for count in range(least, most + 1)}
    cuts = bool(reader.default("crop_to_patches")) if optional else True
    if not cuts:
        tokens[1] = each
    return steps(
        says=f"max_patches of {reader.owner}, {each} tokens a tile",
        full=tokens[most] if cuts else each,
        tokens=dict(sorted(tokens.items())),
        arguments=lambda count: {"max_patches": count} if cuts else {"crop_to_patches": True, "max_patches": count},
    )


def _tokens_per_tile(reader: Reader) -> int | None:
    """What the processor says of it, or writes for one tile; None where it is written in another way."""
    for name in ("image_seq_length", "num_image_tokens"):
        value = reader.option(name)
        if type(value) is int:
            return value
    patch, pooled, side = reader.option("patch_size"), reader.option("downsample_ratio"), reader.edge("height")
    if type(patch) is int and type(pooled) is int and side is not None:
        return (side // patch) ** 2 // pooled
    processor = reader.processor
    token, write = getattr(processor, "image_token_id", None), getattr(processor, "replace_image_token", None)
    if not isinstance(token, int) or write is None:
        return None
    try:
        text = write({"num_patches": [1]}, 0)
    except (KeyError, TypeError):
        return None  # it needs more to be told than the number of tiles
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"].count(token) or None


def split_images(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """SmolVLM, Idefics 3: scaled to ``size["longest_edge"]``, cut into squares of ``max_image_size`` and the whole.

    n squares along the longer side give n * n squares and the whole for a square image, fewer for others.
    """
    square, longest = reader.edge("longest_edge", "max_image_size"), reader.edge("longest_edge")
    each = reader.option("image_seq_len")
    if square is None or longest is None or type(each) is not int or not reader.takes("do_image_splitting"):
        return None
    splits = bool(reader.default("do_image_splitting"))
    most = ceil(longest / square)
    tokens = {n * n: each * (n * n + 1 if n > 1 else 1) for n in range(1, most + 1)}
    along = {n * n: n for n in range(1, most + 1)}
    on: Arguments = {} if splits else {"do_image_splitting": True}
    return steps(
        says=f"size of {reader.owner}, the longest edge in squares of {square} px, {each} tokens each",
        full=tokens[most**2] if splits else each,
        tokens=tokens,
        arguments=lambda squares: {"size": {"longest_edge": along[squares] * square}, **on},
    )


def crops(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """Molmo, both generations: at most ``max_crops`` overlapping crops, pooled to one token for 2 x 2 patches.

    a x b crops are a picture of (a w + m) x (b w + m) patches, where w patches of a crop are its own and m are margins;
    the whole in one crop comes first.
    """
    most, margins = reader.count("max_crops"), reader.default("overlap_margins")
    geometry = _crop_geometry(reader)
    if most is None or margins is None or geometry is None:
        return None
    patches, pooling = geometry
    margin = sum(margins)
    whole = ceil(patches / pooling) ** 2

    def along(count: int) -> int:
        return ceil((count * (patches - margin) + margin) / pooling)

    tokens: dict[int, int] = {}
    for n in range(1, most + 1):
        tilings = (along(a) * along(b) for a, b in product(range(1, n + 1), repeat=2) if a * b <= n)
        tokens[n] = whole + max(tilings)
    return steps(
        says=f"max_crops of {reader.owner}",
        full=tokens[most],
        tokens=tokens,
        arguments=lambda count: {"max_crops": count},
    )


def _crop_geometry(reader: Reader) -> tuple[int, int] | None:
    """Patches along the side of a crop, and how many of them along a side are pooled into one token."""
    second: Any = reader.default("pooling_size")
    side, patch = reader.edge("height"), reader.count("patch_size")
    if second is not None and side is not None and patch is not None:
        return side // patch, int(second[0])
    first: Any = reader.default("base_image_input_size")
    patch = reader.count("image_patch_size")
    if first is not None and patch is not None:
        return int(first[0]) // patch, 2
    return None


def tiles_of_tokens(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """LFM2-VL: a small image has at most ``max_image_tokens``; a large one at most ``max_tiles`` tiles and that.

    Values up to ``max_image_tokens`` are reached without tiles, all of them; above, by tiles.
    """
    most, single = reader.count("max_tiles"), reader.count("max_image_tokens")
    tile, patch = reader.count("tile_size"), reader.count("encoder_patch_size")
    pooling = reader.count("downsample_factor")
    if most is None or single is None or tile is None or patch is None or pooling is None:
        return None
    fewest = min(reader.count("min_image_tokens") or 1, single)
    each = ceil(tile // patch / pooling) ** 2
    whole = single if reader.default("use_thumbnail") else 0
    splits = bool(reader.default("do_image_splitting"))
    least = max(2, reader.count("min_tiles") or 1)
    tiled: Mapping[int, int] = {n * each + whole: n for n in range(least, most + 1)} if splits else {}
    counts = [count for count in tiled if count > single]
    full = max([single, *counts])
    with_tiles = steps(
        says="", full=full, tokens={1: single, **{tiled[count]: count for count in counts}}, arguments=lambda _: {}
    ).levels

    def arguments(tokens: int) -> Arguments:
        if tokens == full:
            return {}
        if tokens in counts:
            return {"max_tiles": tiled[tokens]}
        enlarged_to = min(fewest, max(1, tokens // 2 - 1))
        return {"do_image_splitting": False, "max_image_tokens": tokens, "min_image_tokens": enlarged_to}

    return Mechanism(
        says=f"max_tiles and max_image_tokens of {reader.owner}",
        full=full,
        levels=with_tiles if counts else span_levels(full, fewest),
        legal=(range(fewest, single + 1), *(range(count, count + 1) for count in sorted(counts))),
        arguments=arguments,
    )


def pan_and_scan(reader: Reader, model: PreTrainedModel) -> Mechanism | None:
    """Gemma 3: a long image is cut into up to ``pan_and_scan_max_num_crops`` along its longer side, and the whole.

    The whole alone is the fewest. Where the processor does not cut by itself it is full, and the other values are more.
    """
    most, each = reader.count("pan_and_scan_max_num_crops"), reader.option("image_seq_length")
    if most is None or type(each) is not int or not reader.takes("do_pan_and_scan"):
        return None
    tokens = {1: each, **{count + 1: each * (count + 1) for count in range(2, most + 1)}}
    cuts = bool(reader.default("do_pan_and_scan"))

    def arguments(pictures: int) -> Arguments:
        if pictures == 1:
            return {"do_pan_and_scan": False}
        return {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": pictures - 1}

    return steps(
        says=f"do_pan_and_scan of {reader.owner}, {each} tokens a picture",
        full=max(tokens.values()) if cuts else each,
        tokens=tokens,
        arguments=arguments,
    )
