"""Why a processor has no usable number of image tokens."""

from chronostat.knobs.vision.reading import Reader

_KNOWN = (
    "max_patches with crop_to_patches, do_image_splitting, max_crops, max_image_tokens, do_pan_and_scan, "
    "image_grid_pinpoints, max_image_tiles, max_soft_tokens, or size as an area or a longest edge with a patch size"
)


def why_not(reader: Reader) -> str:
    """One sentence for people."""
    name = type(reader.processor).__name__
    if reader.image_processor is None:
        return f"{name} has no image processor"
    if reader.takes("image_grid_pinpoints"):
        return (
            f"{name} has image_grid_pinpoints, but counts the tokens of a grid in a way that is not known, or the "
            "model's configuration has none"
        )
    if reader.takes("spatial_patch_size"):
        return (
            f"{name} adds image tokens for each row of an image, so an area of pixels does not say how many there are"
        )
    if reader.takes("max_image_tiles"):
        return (
            f"{name} cuts another number of tiles (max_image_tiles = {reader.default('max_image_tiles')}) than the "
            "vision tower is built for (vision_config.max_num_tiles); make them equal"
        )
    fixed = reader.option("image_seq_length")
    if type(fixed) is int:
        return (
            f"{name} gives {fixed} image tokens to every image: it writes image_seq_length placeholders whatever the "
            "image processor is called with, so other pixels would not match them"
        )
    if reader.option("vision_feature_select_strategy") is not None:
        return (
            f"{name} gives every image the tokens of one size, crop_size of {reader.owner}: other sizes change the "
            "tokens, but the vision tower takes images of the size it was built for and raises for others"
        )
    return f"{name} with {reader.owner} takes none of the arguments that are known to change its image tokens: {_KNOWN}"
