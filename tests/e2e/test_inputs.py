"""Images as people have them: photos on their side, folders with other things in them, more than fit in memory."""

import json

import pytest
from PIL import Image

from chronostat.data.demo import DemoTask
from chronostat.data.images import load_images
from chronostat.data.quality import exact
from chronostat.execution.execute import execute, request_for
from chronostat.records import Setting
from e2e.commands import refusal, typed

ORIENTATION = 0x0112
TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_photo_on_its_side_is_read_upright(tmp_path, bundled, orientation):
    """Digit questions about files that a camera turned get the answers that they get upright."""
    digits = [sample for sample in DemoTask().split("test")[:160] if sample.kind == "digit"][:8]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    right = 0.0
    for sample in digits:
        path = tmp_path / f"{sample.id}.png"
        sample.load_images()[0].transpose(TURNED[orientation]).save(path, exif=exif)
        (image,) = load_images([path])
        assert image.tobytes() == sample.load_images()[0].tobytes()
        request = request_for(sample, bundled.processor, exact)
        right += execute(bundled.model, request, setting=Setting(), max_new_tokens=4).quality
    assert right >= 7


def test_a_folder_with_other_things_in_it(tmp_path):
    for name in ("a.png", "c.JFIF", "d.avif", "e.png"):
        form = {"JFIF": "JPEG"}.get(name.split(".")[1])
        Image.new("RGB", (40, 30), "blue").save(tmp_path / name, form)
    (tmp_path / "._photo.jpg").write_bytes(b"\0\5\x16\7 of a file manager")
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "photo.heic").write_bytes(b"a kind without a reader")
    (tmp_path / "notes.txt").write_text("no image")
    written = tmp_path / "out.json"
    words = ("--images", tmp_path, "--prompt", "What?", "--new-tokens", "1", "--requests", "3", "--json", written)
    said = typed("measure", *words)
    assert said.status == 0, said.err
    assert json.loads(written.read_text())["requests"] == ["a.png", "c.JFIF", "d.avif"]
    assert (
        "left out: 1 folders, 1 hidden, 1 of a kind that is not read (.heic), 1 of a kind that is not read (.txt)"
        in said.out
    )
    assert "3 of 4 images are measured; --requests says how many" in said.out


def test_images_are_opened_when_they_are_used(tmp_path, monkeypatch):
    """One picture is held at a time, so that the peak memory that is shown is the model's."""
    opened = []
    for number in range(4):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(
        "chronostat.cli.actions.requests.load_images", lambda paths: opened.append(paths[0].name) or load_images(paths)
    )
    said = typed("measure", "--images", tmp_path, "--prompt", "What?", "--new-tokens", "1")
    assert said.status == 0, said.err
    assert opened[:4] == ["0.png", "1.png", "2.png", "3.png"]  # each prepared once before
    assert len(opened) > 8  # and read anew for each execution: nothing keeps them
    assert opened.count("3.png") <= 4


def test_a_transparent_image_is_said_on_one_line(tmp_path):
    Image.new("RGBA", (40, 30), (0, 0, 255, 100)).save(tmp_path / "a.png")
    said = typed("measure", "--image", tmp_path / "a.png", "--prompt", "What?", "--new-tokens", "1", "--repeats", "1")
    assert said.status == 0
    (line,) = [line for line in said.err.splitlines() if line.startswith("chronostat")]
    assert line.startswith("chronostat: note: an image is transparent in places")


def test_the_template_is_told_what_the_command_line_says(tmp_path):
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "a.png")
    words = ("measure", "--image", tmp_path / "a.png", "--prompt", "What?", "--new-tokens", "1", "--repeats", "1")
    tokens = []
    for told in ((), ("--template", "add_generation_prompt=false")):
        said = typed(*words, *told, "--json", tmp_path / "out.json")
        assert said.status == 0, said.err
        arm = json.loads((tmp_path / "out.json").read_text())["arms"][0]
        tokens.append(arm["executions"][0]["prompt_tokens"])
    assert tokens[1] == tokens[0] - 1
    said = typed(*words, "--template", "enable_thinking=false")
    assert said.status == 4
    assert "model.template: 'enable_thinking' is read nowhere in the chat template of" in refusal(said)


def test_data_that_has_moved_is_named_for_a_run_that_has_data(tmp_path, trained_run):
    said = typed("train", "--data", tmp_path / "a.jsonl")
    assert said.status == 2
    assert refusal(said).endswith("says where the data of a resumed run is now; name data with data.path")
    said = typed("validate", trained_run, "--data", tmp_path / "a.jsonl")
    assert said.status == 2
    assert refusal(said).endswith(f"the run in {trained_run} has no data of its own; leave it out")
