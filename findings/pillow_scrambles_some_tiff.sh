#!/usr/bin/env bash
# Some TIFF files that ask to be turned come out scrambled when they are opened by name, and right when opened first.
#
# Versions: Pillow 13.0.0, numpy 2.
#
# Input: an uncompressed TIFF of 9 x 6 px with orientation 6 (turn by a quarter), in the modes L, RGB and RGBA, whose
# pixels count up, read by ImageOps.exif_transpose(Image.open(path)) and by the same with a file object.
#
# Expected: 6 x 9 px by both ways, in every mode, each pixel at its place.
#
# Behaviour: L and RGBA opened by name come out as 9 x 6 px: their rows were cut after 6 pixels in place of 9, and the
# result was turned. RGB is right.
#
# Cause: opening sets the size to that of the turned picture already (TiffImagePlugin._setup). A file that is opened by
# name and needs no unpacking is then mapped into memory with that size (ImageFile.load, map_buffer), though its rows
# have the width of the picture as it is stored; load_end turns what came of it.
#
# Exit status: 0 if it is still so, 1 if the behaviour has changed.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet pillow==13.0.0 numpy

cat > "$work/read.py" <<'PYTHON'
"""Read the same files by name and as file objects, and say which pixels came out."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

path = Path(sys.argv[1]) / "a.tiff"
found = {}
for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4)):
    stored = np.arange(54 * channels, dtype=np.uint8).reshape(6, 9, channels)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored.squeeze()).save(path, exif=exif)
    right, cut = (np.rot90(pixels, -1).squeeze() for pixels in (stored, stored.reshape(9, 6, channels)))
    by_name = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    with path.open("rb") as file:
        opened = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    found[mode] = ["right" if np.array_equal(p, right) else "scrambled" if np.array_equal(p, cut) else "other" for p in (by_name, opened)]
    print(f"{mode}: by name {found[mode][0]}, opened first {found[mode][1]}")
if found != {"L": ["scrambled", "right"], "RGB": ["right", "right"], "RGBA": ["scrambled", "right"]}:
    sys.exit("CHANGED")
print("AS DESCRIBED: opened by name, L and RGBA are scrambled.")
PYTHON

"$python" "$work/read.py" "$work"

# Output seen:
#   L: by name scrambled, opened first right
#   RGB: by name right, opened first right
#   RGBA: by name scrambled, opened first right
#   AS DESCRIBED: opened by name, L and RGBA are scrambled.
