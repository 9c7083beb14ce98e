"""Pictures inside a request: data URLs alone, their limits checked by their heads before anything is decoded."""

import base64
import binascii
import io
import re
from dataclasses import dataclass

from PIL import Image

from chronostat.wire.errors import Refused, bad

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may bring.

    Attributes:
        body: bytes of the whole request.
        images: how many pictures.
        image: bytes of one picture's file.
        pixels: of one picture.
    """

    body: int = 32 * _MIB
    images: int = 16
    image: int = 20 * _MIB
    pixels: int = 40_000_000


def picture(url: str, param: str, limits: Limits) -> bytes:
    """The file of a picture.

    Raises:
        Refused: another kind of URL, no picture, or beyond a limit; names the field.
    """
    head = _DATA_URL.match(url)
    if head is None:
        scheme = url.partition(":")[0][:12]
        raise bad(
            param,
            f"{param} begins with {scheme!r}: this server fetches nothing, neither by http(s) nor from files; send the "
            "picture itself as data:image/png;base64,...",
        )
    encoded = url[head.end() :]
    if len(encoded) * 3 // 4 > limits.image:
        raise _too_large(param, f"about {len(encoded) * 3 // 4:,} bytes", f"{limits.image:,} bytes")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise bad(param, f"{param} is not valid base64 ({error}); encode the picture's file") from None
    _check_head(content, param, limits)
    return content


def _check_head(content: bytes, param: str, limits: Limits) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:  # Pillow's own limit is above ours, and it tells no size
        raise _too_large(param, "far too many pixels", f"{limits.pixels:,} pixels") from None
    except (OSError, SyntaxError, ValueError):  # what they say is about Pillow's own objects
        said = f"{param} is no picture that can be read; send a whole file of {', '.join(FORMATS)}"
        raise bad(param, said) from None
    if width * height > limits.pixels:
        raise _too_large(param, f"{width} x {height} pixels", f"{limits.pixels:,} pixels")


def _too_large(param: str, value: str, allowed: str) -> Refused:
    return bad(
        param, f"{param} has {value}; at most {allowed} are taken, send a smaller picture", code="image_too_large"
    )
