"""Pictures inside a request: data URLs alone, their limits checked by their heads before anything is decoded."""

import base64
import binascii
import io
import re
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from chronostat.wire.errors import Refused, bad

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may bring, and all of them.

    Attributes:
        body: bytes of the whole request.
        images: how many pictures.
        image: bytes of one picture's file.
        pixels: of all pictures together.
        unanswered: bytes of all requests together whose answers have not begun.
    """

    body: int = 32 * _MIB
    images: int = 16
    image: int = 20 * _MIB
    pixels: int = 40_000_000
    unanswered: int = 256 * _MIB


class Picture(NamedTuple):
    """The file of a picture, and how many pixels its head says."""

    content: bytes
    pixels: int


def picture(url: str, param: str, limits: Limits, *, before: int = 0) -> Picture:
    """A picture, checked and not decoded.

    Args:
        url: that holds it.
        param: the field.
        limits: of the request.
        before: pixels of the request's pictures before this one.

    Raises:
        Refused: another kind of URL, no picture, or beyond a limit; names the field.
    """
    head = _DATA_URL.match(url)
    if head is None:
        kind, _, _ = url[:40].partition(",")
        scheme = url.partition(":")[0][:12]
        why = (
            f"is {kind!r}, which is no picture in base64"
            if scheme == "data"
            else f"begins with {scheme!r}: this server fetches nothing, neither by http(s) nor from files"
        )
        raise bad(param, f"{param} {why}; send the picture itself as data:image/png;base64,...")
    encoded = url[head.end() :]
    if len(encoded) * 3 // 4 > limits.image:
        raise _too_large(param, f"about {len(encoded) * 3 // 4:,} bytes", f"{limits.image:,} bytes")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise bad(param, f"{param} is not valid base64 ({error}); encode the picture's file") from None
    return Picture(content, _pixels(content, param, limits, before))


def _pixels(content: bytes, param: str, limits: Limits, before: int) -> int:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:  # Pillow's own limit is above ours, and it tells no size
        raise _too_large(param, "far too many pixels", f"{limits.pixels:,} pixels in all") from None
    except (OSError, SyntaxError, ValueError):  # what they say is about Pillow's own objects
        said = f"{param} is no picture that can be read; send a whole file of {', '.join(FORMATS)}"
        raise bad(param, said) from None
    if before + width * height > limits.pixels:
        already = f" after {before:,} of other pictures" if before else ""
        raise _too_large(param, f"{width} x {height} pixels{already}", f"{limits.pixels:,} pixels in all")
    return width * height


def _too_large(param: str, value: str, allowed: str) -> Refused:
    return bad(
        param, f"{param} has {value}; at most {allowed} are taken, send a smaller picture", code="image_too_large"
    )
