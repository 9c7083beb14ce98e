"""Own data: what is read, and one clear error for each thing that cannot be."""

import base64
import io
import json
import random
import re

import pytest
from PIL import Image

from chronostat.data.own import OwnData
from chronostat.data.samples import SPLITS
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
    "a list as text": (GOOD | {"image": '["a.png"]'}, '["a.png"] does not exist'),
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


def refused(path):
    with pytest.raises(DataError) as said:
        OwnData(path)
    (line,) = str(said.value).splitlines()
    assert len(line) < 400
    return line


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_place_of_lines(folder, indent):
    path = folder / "data.json"
    path.write_text(json.dumps([GOOD, GOOD | {"id": "a2"}], indent=indent))
    message = (
        f"{path} is one JSON array; write one object per line, which `jq -c '.[]' data.json > data-lines.jsonl` does"
    )
    assert refused(path) == message


def test_an_image_that_is_a_url(folder):
    path = write(folder, GOOD | {"image": "https://example.org/" + "x" * 9000})
    assert refused(path).startswith(f"{path}:1: image 'https://example.org/xxxxxxxxxx")
    assert refused(path).endswith(" is a URL; only local files are read: download it first")


def test_a_data_uri_that_is_none_is_not_repeated_in_full(folder):
    path = write(folder, GOOD | {"image": "data:image/png;base64," + "?" * 188_000})
    assert "(188,022 characters) is neither a file that exists nor base64" in refused(path)


def test_the_whole_of_base64_is_looked_at_when_the_file_is_read(folder):
    content = base64.b64encode((folder / "a.png").read_bytes()).decode()
    for wrong in (content + "?" * 4, content[:-3]):
        said = refused(write(folder, GOOD | {"image": f"data:image/png;base64,{wrong}"}))
        assert said.endswith("is neither a file that exists nor base64")
    in_lines = "\n".join(re.findall(".{1,76}", content))
    data = OwnData(write(folder, GOOD | {"image": f"data:image/png;base64,{in_lines}"}))
    assert data.split("train")[0].load_images()[0].size == (6, 4)


def test_a_name_that_no_file_has_is_not_repeated_in_full(folder):
    assert "(188,000 characters) does not exist" in refused(write(folder, GOOD | {"image": "x" * 188_000}))


def test_a_tilde_is_the_home_directory(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    path = write(folder / "..", GOOD | {"image": "~/a.png"})
    assert OwnData(path).split("train")[0].load_images()[0].size == (6, 4)


def test_the_answer_objects_of_vqa_v2(folder):
    answers = [{"answer": each, "answer_confidence": "yes", "answer_id": n} for n, each in enumerate(["cat", "dog"])]
    assert OwnData(write(folder, GOOD | {"answers": answers})).split("train")[0].references == ("cat", "dog")
    answers[1]["answer"] = None
    assert "answers.1: Input should be a valid string (it is None)" in refused(
        write(folder, GOOD | {"answers": answers})
    )


def test_splits_that_share_an_image_are_refused(folder):
    path = write(folder, GOOD, GOOD | {"id": "a2", "image": ["b.jpg", "a.png"], "split": "test"})
    said = refused(path)
    assert said.startswith(f"{path}:2: its image is also that of {path}:1, but one is in test and the other in train;")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    assert "its image is also that of" in refused(
        write(folder, GOOD, GOOD | {"id": "a2", "image": "copy.png", "split": "test"})
    )


def questions(folder, images, each):
    """Many questions about few images, without splits, sorted by kind."""
    for number in range(images):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    return [
        without("split") | {"id": f"{number}-{k}", "image": f"{number}.png", "kind": str(k)}
        for k in range(each)
        for number in range(images)
    ]


def by_split(data):
    return {split: {sample.id for sample in data.everything if sample.split == split} for split in SPLITS}


def test_splits_are_made_by_image_where_there_are_none(folder):
    lines = questions(folder, images=200, each=2)
    data = OwnData(write(folder, *lines))
    found = by_split(data)
    assert [len(found[split]) / 400 for split in SPLITS] == pytest.approx([0.6, 0.15, 0.25], abs=0.1)
    assert all({id_.split("-")[0] for id_ in ids} == {i.split("-")[0] for i in ids} for ids in found.values())
    images = [{id_.split("-")[0] for id_ in ids} for ids in found.values()]
    assert images[0] & images[1] == images[0] & images[2] == images[1] & images[2] == set()
    fewer = by_split(OwnData(write(folder, *reversed(lines[:-100]))))
    assert all(fewer[split] <= found[split] for split in SPLITS)  # others that come and go move none


def test_samples_that_share_an_image_in_a_chain_stay_together(folder):
    chain = [
        without("split") | {"id": str(number), "image": [f"{number}.png", f"{number + 1}.png"]} for number in range(30)
    ]
    questions(folder, images=31, each=1)
    assert len([ids for ids in by_split(OwnData(write(folder, *chain))).values() if ids]) == 1


def test_a_sorted_file_is_not_read_in_its_order(folder):
    lines = [line | {"split": "train"} for line in questions(folder, images=100, each=2)]
    kinds = [sample.kind for sample in OwnData(write(folder, *lines)).split("train")]
    assert 10 < sum(kind == "1" for kind in kinds[:40]) < 30
    again = [sample.id for sample in OwnData(write(folder, *reversed(lines))).split("train")]
    assert again == [sample.id for sample in OwnData(write(folder, *lines)).split("train")]
    other = [sample.id for sample in OwnData(write(folder, *lines), shuffle=1).split("train")]
    assert sorted(other) == sorted(again)
    assert other != again


def test_some_rows_with_a_split_and_some_without(folder):
    path = write(folder, GOOD, without("split") | {"id": "a2", "image": "c.png"})
    assert refused(path) == f"{path}:2: split: Field required; other rows have one: give it to all rows, or to none"


TWO = GOOD | {"image": ["a.png", "b.jpg"]}


@pytest.mark.parametrize(
    ("line", "turns"),
    [
        (TWO, ()),
        (TWO | {"prompt": "Is <image 2> like <image 1>?"}, [("user", ("Is ", 1, " like ", 0, "?"))]),
        (TWO | {"prompt": "<image><image>Same?"}, ()),  # where they stand anyway
        (TWO | {"system": "Be brief."}, [("system", ("Be brief.",)), ("user", (0, 1, "What?"))]),
        (
            without("prompt")
            | {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is it?"},
                    {"role": "assistant", "content": "A cat."},
                    {"role": "user", "content": "Sure?"},
                ]
            },
            [
                ("system", ("Be brief.",)),
                ("user", (0, "What is it?")),
                ("assistant", ("A cat.",)),
                ("user", ("Sure?",)),
            ],
        ),
        (
            {key: value for key, value in GOOD.items() if key not in {"prompt", "image"}}
            | {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "From "},
                            {"type": "image", "image": "b.jpg"},
                            {"type": "text", "text": " to "},
                            {"type": "image", "image": "a.png"},
                        ],
                    }
                ]
            },
            [("user", ("From ", 0, " to ", 1))],
        ),
    ],
)
def test_images_stand_at_named_places_in_a_conversation(folder, line, turns):
    (sample,) = OwnData(write(folder, line)).split("train")
    assert [(turn.role, turn.parts) for turn in sample.turns] == list(turns)
    assert sample.asked == (sample.turns or sample.prompt)


def part(image=None, **more):
    return {"type": "image", "image": image} | more


@pytest.mark.parametrize(
    ("images", "content", "parts", "sizes"),
    [
        # the row's next one, one that a part names, the row's next one
        (["a.png", "b.jpg"], [part(), part("c.png"), part(), "?"], (0, 2, 1, "?"), [(6, 4), (3, 3), (5, 2)]),
        (["a.png", "b.jpg"], [part(2), " and ", part(1)], (1, " and ", 0), [(6, 4), (3, 3)]),
        (["a.png"], [part(), "Where is <image 1>?"], (0, "Where is <image 1>?"), [(6, 4)]),
        (["a.png"], ["Is <image 1> red?"], ("Is ", 0, " red?"), [(6, 4)]),
    ],
)
def test_parts_of_a_message(folder, images, content, parts, sizes):
    told = [{"type": "text", "text": each} if isinstance(each, str) else each for each in content]
    line = without("prompt") | {"image": images, "messages": [{"role": "user", "content": told}]}
    (sample,) = OwnData(write(folder, line)).split("train")
    asked = sample.turns[0].parts if sample.turns else (*range(len(images)), sample.prompt)
    assert asked == parts
    assert [image.size for image in sample.load_images()] == sizes


@pytest.mark.parametrize("content", ["", [{"type": "text", "text": ""}]])
def test_an_empty_message_is_refused(folder, content):
    messages = [{"role": "system", "content": content}, {"role": "user", "content": "What?"}]
    said = refused(write(folder, without("prompt") | {"messages": messages}))
    assert said.endswith("data.jsonl:1: messages.0: what the system says is empty; leave the message out")


def test_what_the_user_says_is_the_prompt_that_the_controller_reads(folder):
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "Why?"},
    ]
    (sample,) = OwnData(write(folder, without("prompt") | {"messages": messages})).split("train")
    assert sample.prompt == "What?\nWhy?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            TWO | {"prompt": "<image 1>?"},
            "the prompt: there are 2 images and 1 places; name each image once",
        ),
        (TWO | {"prompt": "<image 1> <image 1>?"}, "there are 2 images and 2 places"),
        (GOOD | {"prompt": "<image> <image>?"}, "there are 1 images and 2 places"),
        (without("prompt"), "prompt: Field required; give either 'prompt' or 'messages'"),
        (GOOD | {"messages": [{"role": "user", "content": "x"}]}, "'prompt' and 'messages' are both there; give one"),
        (without("prompt") | {"messages": [{"role": "assistant", "content": "x"}]}, "the last one is the user's"),
        (without("prompt") | {"messages": []}, "messages: List should have at least 1 item"),
        (without("prompt") | {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: Input should be"),
        (GOOD | {"options": ["one"]}, "options: List should have at least 2 items"),
    ],
)
def test_conversations_that_cannot_be(folder, line, message):
    assert message in refused(write(folder, line))


def test_options_are_letters_in_the_prompt(folder):
    line = GOOD | {"options": ["a cat", "a dog"], "answers": ["B"]}
    (sample,) = OwnData(write(folder, line)).split("train")
    assert (sample.prompt, sample.options) == ("What?\nA. a cat\nB. a dog", ("a cat", "a dog"))
    named = OwnData(write(folder, GOOD | {"options": {"A": "a cat", "B": "a dog"}})).split("train")[0]
    assert named.prompt == sample.prompt
