"""Own data: what is read, and one clear error for each thing that cannot be."""

import io
import json
import random
import re

import pytest
from PIL import Image

from chronostat.data.own import OwnData
from chronostat.errors import DataError

GOOD = {"id": "a1", "image": "a.png", "prompt": "What?", "answers": ["cat"], "split": "train"}


@pytest.fixture
def folder(tmp_path):
    Image.new("L", (6, 4), 200).save(tmp_path / "a.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "b.jpg")
    Image.new("RGB", (5, 2)).save(tmp_path / "c.png")
    return tmp_path


def write(folder, *lines, newline="\n"):
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes((newline.join(texts) + newline).encode())
    return path


def test_samples_of_a_file(folder):
    several = GOOD | {"id": "a2", "image": ["c.png", "b.jpg"], "answers": ["1", "2"], "split": "test", "kind": "count"}
    data = OwnData(write(folder, GOOD, "", several))
    sample = data.split("train")[0]
    assert (sample.id, sample.prompt, sample.references, sample.split, sample.kind) == (
        "a1",
        "What?",
        ("cat",),
        "train",
        None,
    )
    assert [(image.mode, image.size) for image in sample.load_images()] == [("RGB", (6, 4))]
    assert [image.size for image in data.split("test")[0].load_images()] == [(5, 2), (3, 3)]
    assert data.split("test")[0].kind == "count"


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_only_line_feeds_end_a_line(folder, separator):
    data = OwnData(write(folder, GOOD | {"prompt": f"Wh{separator}at?"}, newline="\r\n"))
    assert data.split("train")[0].prompt == f"Wh{separator}at?"


def test_a_byte_order_mark_is_ignored(folder):
    path = write(folder, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(OwnData(path).split("train")) == 1


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


BAD_LINES = {
    "not JSON": ("{", "not valid JSON"),
    "a long number": ('{"id": ' + "1" * 5000 + "}", "not valid JSON"),
    "deep nesting": ("[" * 100_000, "not valid JSON"),
    "no object": ("[1]", "line: Input should be"),
    "null": ("null", "line: Input should be"),
    "no id": (without("id"), "id: Field required"),
    "empty id": (GOOD | {"id": ""}, "id: String should have at least 1 character"),
    "id of a number": (GOOD | {"id": 7}, "id: Input should be a valid string"),
    "no image": (without("image"), "image: Field required"),
    "empty list of images": (GOOD | {"image": []}, "image"),
    "missing image": (GOOD | {"image": "d.png"}, "d.png does not exist"),
    "a folder as image": (GOOD | {"image": "."}, "does not exist"),
    "impossible image name": (GOOD | {"image": "x" * 5000}, "does not exist"),
    "null in the image name": (GOOD | {"image": "a\0.png"}, "does not exist"),
    "no prompt": (without("prompt"), "prompt: Field required"),
    "empty prompt": (GOOD | {"prompt": ""}, "prompt: String should have at least 1 character"),
    "no answers": (without("answers"), "answers: Field required"),
    "empty answers": (GOOD | {"answers": []}, "answers: List should have at least 1 item"),
    "answers of a string": (GOOD | {"answers": "cat"}, "answers: Input should be a valid list"),
    "unknown split": (GOOD | {"split": "dev"}, "split: Input should be 'train', 'validation' or 'test'"),
    "unknown key": (GOOD | {"answer": "cat"}, "answer: Extra inputs are not permitted"),
    "a video": (GOOD | {"video": "a.mp4"}, "video is not supported"),
    "an id twice": (GOOD, "id 'a1' appears twice"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_with_its_number(folder, name):
    line, message = BAD_LINES[name]
    path = write(folder, GOOD, line)
    with pytest.raises(DataError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(message)):
        OwnData(path)


def test_a_file_that_cannot_be_read(folder):
    with pytest.raises(DataError, match=r"cannot read the data file .*none.jsonl"):
        OwnData(folder / "none.jsonl")
    (folder / "data.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="cannot read the data file"):
        OwnData(folder / "data.jsonl")


def test_a_split_without_samples(folder):
    with pytest.raises(DataError, match='has no sample with "split": "test"; add some'):
        OwnData(write(folder, GOOD)).split("test")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_an_image_that_is_none(folder, content):
    (folder / "a.png").write_bytes(content)
    with pytest.raises(
        DataError, match=r"cannot read the image .*a.png: .*; it must be a picture that Pillow can open"
    ):
        OwnData(write(folder, GOOD)).split("train")[0].load_images()


def test_an_image_that_went_away(folder):
    data = OwnData(write(folder, GOOD))
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match="cannot read the image"):
        data.split("train")[0].load_images()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage that it can read over
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_damaged_image_is_read_or_refused(folder, form):
    buffer = io.BytesIO()
    Image.effect_noise((24, 16), 60).convert("RGB").save(buffer, form)
    sample = OwnData(write(folder, GOOD)).split("train")[0]
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(buffer.getvalue()[: rng.randrange(10, len(buffer.getvalue()) + 1)])
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (folder / "a.png").write_bytes(damaged)
        try:
            (image,) = sample.load_images()
        except DataError:
            continue
        assert image.mode == "RGB"
