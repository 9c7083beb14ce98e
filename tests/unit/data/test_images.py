"""Image files become what transformers makes of them, byte by byte, and what is lost is said once."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from transformers.image_utils import load_image as reference

from chronostat.data.images import image_size, load_image, load_images, picture_suffixes
from chronostat.errors import DataError
from chronostat.progress import DataWarning

ORIENTATION = 0x0112
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8))
DEEP = Image.fromarray(RNG.integers(0, 65536, (6, 9), dtype=np.uint16))
MODES = {
    **{mode: (PICTURE.convert(mode), {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")},
    "P with transparency": (PICTURE.convert("P"), {"transparency": 3}),
    "RGB with a transparent colour": (PICTURE, {"transparency": (1, 2, 3)}),
    "I;16": (DEEP, {}),
    "I": (PICTURE.convert("L").convert("I"), {}),
    "F": (PICTURE.convert("L").convert("F"), {}),
}
FORMS = {"CMYK": ("TIFF", "JPEG"), "F": ("TIFF",), "I": ("TIFF",), "RGB": ("PNG", "TIFF", "JPEG", "WEBP")}


@pytest.mark.filterwarnings("ignore::chronostat.progress.DataWarning")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_an_image_file_is_read_as_transformers_reads_it(tmp_path, mode, orientation):
    image, options = MODES[mode]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for form in FORMS.get(mode, ("PNG", "TIFF")):
        path = tmp_path / f"a.{form.lower()}"
        image.save(path, form, exif=exif, **options)
        # not by name: some TIFF files come out scrambled then (findings/pillow_scrambles_some_tiff.sh)
        wanted, read = reference(Image.open(io.BytesIO(path.read_bytes()))), load_image(path, "a")
        assert (read.mode, read.size) == ("RGB", wanted.size)
        assert read.tobytes() == wanted.tobytes()
        assert load_image(path.read_bytes(), "a").tobytes() == wanted.tobytes()
        assert image_size(path, "a") == wanted.size == ((9, 6) if orientation < 5 else (6, 9))


def turned(orientation, form="PNG"):
    """A file of 9 x 6 px with an orientation, which may be none of the eight, or a text."""
    kind, value = (3, struct.pack("<HH", orientation, 0)) if isinstance(orientation, int) else (2, b"6\0\0\0")
    count = 1 if kind == 3 else 2
    entry = struct.pack("<HHI", ORIENTATION, kind, count) + value
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    PICTURE.save(buffer := io.BytesIO(), form, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [0, 9, "6"])
def test_an_orientation_that_is_none_turns_nothing(orientation, form):
    file = turned(orientation, form)
    assert Image.open(io.BytesIO(file)).getexif()[ORIENTATION] == orientation
    assert load_image(file, "a").size == image_size(file, "a") == (9, 6)


def chunks(file):
    """Those of a PNG: kind, and all its bytes."""
    found, place = [], 8
    while place < len(file):
        end = place + int.from_bytes(file[place : place + 4]) + 12
        found.append((file[place + 4 : place + 8], file[place:end]))
        place = end
    return found


def test_the_size_of_a_png_is_told_without_decoding_it(monkeypatch):
    told = chunks(turned(6))
    assert [kind for kind, _ in told] == [b"IHDR", b"eXIf", b"IDAT", b"IEND"]
    behind = turned(6)[:8] + b"".join(told[place][1] for place in (0, 2, 1, 3))
    assert image_size(behind, "a") == load_image(behind, "a").size == (6, 9)  # Pillow finds it, having decoded all
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert image_size(turned(6), "a") == (6, 9)
    said = PngInfo()
    said.add_text("Comment", "before the pixels")
    assert image_size(of_mode("RGB", pnginfo=said), "a") == (9, 6)


@pytest.mark.parametrize("colours", [2, 6, 4])  # RGB, RGBA, LA
def test_a_png_of_16_bits_a_colour_says_what_is_lost(colours):
    """Made by hand: Pillow writes none, and opens one as if it had 8 bits."""
    head = struct.pack(">IIBBBBB", 1, 1, 16, colours, 0, 0, 0)
    values = {2: 3, 4: 2, 6: 4}[colours]
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" + b"\xff\xff" * values)), (b"IEND", b"")]
    written = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    with pytest.warns(DataWarning, match="an image has values of more than 8 bits, which are cut to 8"):
        load_image(b"\x89PNG\r\n\x1a\n" + b"".join(written), "a")


def of_mode(mode, **options):
    buffer = io.BytesIO()
    MODES[mode][0].save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_what_is_lost_is_said_once_for_each_kind(tmp_path):
    clear, opaque = PICTURE.convert("RGBA"), PICTURE.convert("RGBA")
    clear.putpixel((0, 0), (1, 2, 3, 0))
    paths = [tmp_path / name for name in ("clear.png", "clear2.png", "opaque.png", "deep.png", "deep2.png")]
    for path, image in zip(paths, (clear, clear, opaque, DEEP, DEEP), strict=True):
        image.save(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("once", DataWarning)
        load_images(paths)
    assert [str(warning.message).split(",")[0] for warning in told] == [
        "an image is transparent in places",
        "an image has values of more than 8 bits",
    ]


def test_an_opaque_image_with_an_alpha_channel_says_nothing():
    load_image(of_mode("RGB"), "a")
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(buffer := io.BytesIO(), "PNG")
    load_image(buffer.getvalue(), "a")  # warnings are errors in tests


def test_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    for read in (load_image, image_size):
        with pytest.raises(DataError, match=r"cannot read the image a.png: .*; it must be a picture that Pillow can"):
            read(tmp_path / "a.png", "a.png")
        with pytest.raises(DataError, match="cannot read the image row 3"):
            read(b"text", "row 3")


def test_endings_are_those_of_pictures_that_can_be_opened():
    assert {".jpg", ".jfif", ".png", ".webp", ".avif", ".tif", ".gif", ".bmp"} <= picture_suffixes()
    assert picture_suffixes().isdisjoint({".pdf", ".mpg", ".txt", ".eps", ".heic"})
