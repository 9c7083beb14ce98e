"""Image files as transformers reads them, byte by byte: upright, then RGB.

Wherever a picture comes from (a file, bytes of a table, base64), it is opened when a sample is used and not before.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, ImageOps

from chronostat.errors import DataError
from chronostat.progress import DataWarning

# What Pillow's formats raise for damaged files.
_UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, Image.DecompressionBombError)
_PICTURES = frozenset(
    {"AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
)
_ORIENTATION = 0x0112  # EXIF
_BY_A_QUARTER = frozenset({5, 6, 7, 8})  # the orientations that swap width and height
_TEXTS_OF_PNG = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})  # chunks that may hold an orientation
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})  # more than 8 bits a value


@dataclass(frozen=True)
class ImageSource:
    """Where one image of a sample comes from.

    Attributes:
        name: for messages: the file, or the row that holds it.
        fetch: a file, or the bytes of one; called when the image is needed.
    """

    name: str
    fetch: Callable[[], Path | bytes]

    def content(self) -> bytes:
        """The bytes of its file.

        Raises:
            DataError: it cannot be read.
        """
        held = self.fetch()
        if isinstance(held, bytes):
            return held
        try:
            return held.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the image {self.name}: {error.strerror}") from None

    def load(self) -> Image.Image:
        """The image, upright and as RGB.

        Raises:
            DataError: it is missing or cannot be decoded.
        """
        return load_image(self.fetch(), self.name)

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, without decoding it.

        Raises:
            DataError: it is missing or no picture.
        """
        return image_size(self.fetch(), self.name)

    def digest(self) -> str:
        """Who it is, by the bytes of its file: 32 hex digits.

        Raises:
            DataError: it cannot be read.
        """
        return digest_of(self.content())


def digest_of(content: bytes) -> str:
    """Who an image is, by the bytes of its file: 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def shapes_of(sources: Sequence[ImageSource]) -> tuple[tuple[int, int], ...]:
    """Height and width of the images of one sample in pixels, without decoding them.

    Raises:
        DataError: one is missing or no picture.
    """
    return tuple((height, width) for width, height in (source.size() for source in sources))


def load_all(sources: Sequence[ImageSource]) -> tuple[Image.Image, ...]:
    """The images of one sample.

    Raises:
        DataError: one is missing or cannot be decoded.
    """
    return tuple(source.load() for source in sources)


def load_images(paths: Sequence[Path]) -> tuple[Image.Image, ...]:
    """Read image files, upright and as RGB.

    Raises:
        DataError: an image is missing or cannot be decoded.
    """
    return tuple(load_image(path, str(path)) for path in paths)


def load_image(source: Path | bytes, name: str) -> Image.Image:
    """Read one image, upright and as RGB.

    Args:
        source: a file, or the bytes of one.
        name: of it, for messages.

    Raises:
        DataError: it is missing or cannot be decoded.
    """
    try:
        with _opened(source) as file, Image.open(file) as image:
            _warn_of_losses(image)
            return ImageOps.exif_transpose(image).convert("RGB")
    except _UNREADABLE as error:
        raise DataError(f"cannot read the image {name}: {error}; it must be a picture that Pillow can open") from None


def image_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from the head of the file: nothing is decoded.

    Raises:
        DataError: it is missing or no picture.
    """
    try:
        with _opened(source) as file, Image.open(file) as image:
            # Pillow turns TIFF by itself
            lies = image.format != "TIFF" and _exif(image, file).get(_ORIENTATION) in _BY_A_QUARTER
            return (image.height, image.width) if lies else (image.width, image.height)
    except _UNREADABLE as error:
        raise DataError(f"cannot read the image {name}: {error}; it must be a picture that Pillow can open") from None


@cache
def picture_suffixes() -> frozenset[str]:
    """Endings of the files that are read here as pictures, such as ``.jpg``; those of plugins that are registered."""
    return frozenset(
        suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN and form in _PICTURES
    )


def _opened(source: Path | bytes) -> BinaryIO:
    """Never by name: Pillow scrambles some TIFF files with an orientation that it opens so (findings/)."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def _exif(image: Image.Image, file: BinaryIO) -> Image.Exif:
    """What Pillow's own ``getexif`` gives, without decoding a PNG that holds nothing behind its pixels."""
    if image.format == "PNG" and not _has_texts_behind(file):
        return Image.Image.getexif(image)
    return image.getexif()


def _has_texts_behind(file: BinaryIO) -> bool:
    """Whether a PNG has chunks behind its pixels that may hold an orientation; Pillow finds its own way back."""
    file.seek(8)
    kinds: list[bytes] = []
    while len(head := file.read(8)) == 8:
        kinds.append(head[4:])
        file.seek(int.from_bytes(head[:4]) + 4, io.SEEK_CUR)
    pixels = kinds.index(b"IDAT") if b"IDAT" in kinds else 0
    return not _TEXTS_OF_PNG.isdisjoint(kinds[pixels:])


def _is_deep(image: Image.Image) -> bool:
    """Whether the values of a file that is not decoded yet have more than 8 bits; RGB of 16 bits is opened as RGB."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    return image.mode in _DEEP or any(";16" in str(tile.args) for tile in tiles)


def _warn_of_losses(image: Image.Image) -> None:
    """Once for each kind of loss: RGB of 8 bits is what models read, and what transformers makes of a file too."""
    if _is_deep(image):
        warnings.warn(
            "an image has values of more than 8 bits, which are cut to 8 as transformers does; "
            "scale it to 8 bits before, if its contrast matters",
            DataWarning,
            stacklevel=2,
        )
    if (
        image.has_transparency_data
        and image.convert("RGBA").getchannel("A").histogram()[255] < image.width * image.height
    ):
        warnings.warn(
            "an image is transparent in places, and its transparency is dropped as transformers does: what it hid is "
            "seen; put it on a background before, if that matters",
            DataWarning,
            stacklevel=2,
        )
