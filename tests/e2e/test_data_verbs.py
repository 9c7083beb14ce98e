"""chronostat data check and convert, as they are typed."""

import json

import pytest
from PIL import Image

from chronostat.data.identity import digests
from chronostat.data.own import OwnData, read_samples
from chronostat.models.prepare import conversation_of
from e2e.commands import refusal, typed


@pytest.fixture
def lines(tmp_path):
    """Samples of every form that there is, two for each split."""
    made = []
    for number, split in enumerate(("train", "validation", "test") * 2):
        Image.new("RGB", (64, 64) if number < 3 else (128, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
        made.append(
            {
                "id": str(number),
                "image": f"{number}.png",
                "prompt": "What colour?",
                "answers": ["red", "dark red"],
                "split": split,
                "kind": "colour",
            }
        )
    Image.new("RGB", (64, 32), "green").save(tmp_path / "more.png")
    made[1] |= {"image": ["1.png", "more.png"], "prompt": "Is <image 2> <image 1>?", "system": "Be brief."}
    made[2] |= {"options": ["red", "blue"], "answers": ["A"], "kind": "choice"}
    parts = [{"type": "image", "image": 1}, {"type": "text", "text": "Where is <image 2> written?"}]
    made[4] |= {"messages": [{"role": "user", "content": parts}]}
    del made[4]["prompt"]
    said = [("user", "What?"), ("assistant", "Red."), ("user", "Sure?")]
    made[3] |= {"messages": [{"role": role, "content": text} for role, text in said]}
    del made[3]["prompt"]
    return made


def written(folder, lines):
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def cells_of(said):
    return [[cell.strip() for cell in row.strip("│┃").split("│")] for row in said.out.splitlines() if "│" in row]


def test_check_says_what_a_file_holds(tmp_path, lines):
    lines[5] |= {"answers": [""]}
    said = typed("data", "check", written(tmp_path, lines), "--quality", "exact")
    assert said.status == 0, said.err
    cells = cells_of(said)
    assert ["colour", "2", "2", "1"] in cells
    assert ["choice", "0", "0", "1"] in cells
    assert ["together", "2", "2", "2"] in cells
    sizes = {row[0]: row[1:] for row in cells if " x " in row[0]}
    assert {size: row[0] for size, row in sizes.items()} == {"64 x 64": "3", "128 x 64": "3", "64 x 32": "1"}
    assert sizes["64 x 32"][1:] == ["-", "-"]  # it stands first in no sample
    assert all(int(row[2]) > int(row[1]) > 0 for size, row in sizes.items() if size != "64 x 32")
    assert f"1 samples have references that exact can never match, the first is {tmp_path}/data.jsonl:6: ''" in said.out


def test_check_says_what_a_run_would_refuse(tmp_path, lines):
    lines[5] |= {"image": "0.png"}
    (tmp_path / "4.png").write_bytes(b"no picture")
    path = written(tmp_path, [*lines[:1], *lines[3:]])
    said = typed("data", "check", path)
    assert said.status == 3
    assert refusal(said) == f"{path} cannot be used as it is: see above"
    assert f"{path}:4 (test) and {path}:1 (train) share an image" in said.out
    assert f"{path}:3: cannot read the image {tmp_path}/4.png" in said.out
    assert said.out.count("cannot read the image") == 1
    assert "no sample is in test" not in said.out
    said = typed("data", "check", written(tmp_path, lines[:1]), "--quality", "number")
    assert "no sample is in validation" in said.out
    assert "no reference can be matched by number" in said.out


def test_check_looks_at_the_prompts_as_a_run_does(tmp_path, lines):
    lines[5] |= {"prompt": "What is <IMG_CONTEXT>?"}
    path = written(tmp_path, lines)
    said = typed("data", "check", path)
    assert said.status == 3
    stray = "'<IMG_CONTEXT>', which bundled demo_vlm takes for a part of an image, as do 1 of 2 prompts of test"
    assert f"{path}:6: its prompt holds {stray}" in " ".join(said.out.split())
    assert f"the processor of bundled demo_vlm refuses {path}:6" not in said.out  # of its size another stands first
    said = typed("data", "check", written(tmp_path, [*lines[:3], lines[5]]))
    assert f"the processor of bundled demo_vlm refuses {path}:4" in " ".join(said.out.split())
    assert ["128 x 64", "1", "-", "-"] in cells_of(said)


def test_convert_writes_the_same_samples(tmp_path, lines):
    path, to = written(tmp_path, lines), tmp_path / "own.parquet"
    said = typed("data", "convert", path, "--to", to)
    assert said.status == 0, said.err
    assert said.out.startswith(f"{to}: 6 samples (train 2, validation 2, test 2), ")
    before, after = OwnData(path), OwnData(to)
    for sample in before.everything:
        (same,) = [each for each in after.split(sample.split) if each.id == sample.id]
        assert (same.prompt, same.references, same.options, same.kind) == (
            sample.prompt,
            sample.references,
            sample.options,
            sample.kind,
        )
        assert conversation_of(same.load_images(), same.asked) == conversation_of(sample.load_images(), sample.asked)
        assert same.image_digests == sample.image_digests
    assert digests(after) == digests(before)  # a run goes on with the converted file
    again = tmp_path / "again.parquet"
    assert typed("data", "convert", to, "--to", again).status == 0
    assert digests(OwnData(again)) == digests(before)


def test_convert_divides_by_image_and_shuffles_by_seed(tmp_path, lines):
    path, to = (
        written(tmp_path, [{k: v for k, v in line.items() if k != "split"} for line in lines]),
        tmp_path / "a.parquet",
    )
    orders = []
    for words in ((), ("--shuffle", "1"), ("--shuffle", "2")):
        assert typed("data", "convert", path, "--to", to, *words).status == 0
        orders.append([each.sample.id for each in read_samples(to)])
    assert orders[0] == ["0", "1", "2", "3", "4", "5"]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == orders[0] for order in orders)


def test_columns_that_are_none(tmp_path, lines):
    path = written(tmp_path, lines)
    said = typed("data", "check", path, "--column", "question=prompt")
    assert said.status == 2
    assert refusal(said).startswith("data.columns.question is no field of a sample; fields are id, image")
    said = typed("data", "convert", path, "--to", tmp_path / "none" / "a.parquet")
    assert said.status == 8
    assert "name another file with --to" in refusal(said)
