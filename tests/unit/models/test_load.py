"""What cannot be loaded is refused with one clear message."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from chronostat.errors import ModelError
from chronostat.models.load import BUNDLED, fingerprint, load_vlm

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled model's folder, to be broken."""
    return shutil.copytree(BUNDLED, tmp_path / "model")


def refused(path, **options):
    with pytest.raises(ModelError) as error:
        load_vlm(path, device="cpu", **options)
    return str(error.value)


def test_the_bundled_model_loads_in_evaluation_mode(bundled):
    assert bundled.name == "bundled demo_vlm"
    assert not bundled.model.training
    assert {parameter.dtype for parameter in bundled.model.parameters()} == {torch.float32}


def test_a_copied_folder_is_the_same_model(bundled, folder):
    vlm = load_vlm(folder, device="cpu")
    assert vlm.name == str(folder)
    assert vlm.fingerprint == bundled.fingerprint


@pytest.mark.parametrize("size", [1, 64, 65, 127, 128, 1000])
def test_the_fingerprint_reads_values_all_over_a_weight(size):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(size))
    before = fingerprint(module)
    with torch.no_grad():
        module.weight[-max(1, -(-size // 64)) :] = 1  # where the last of at most 64 values is read
    assert fingerprint(module) != before


def test_the_fingerprint_follows_the_weights(folder, bundled):
    weights = load_file(folder / WEIGHTS)
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    vlm = load_vlm(folder, device="cpu")
    assert vlm.fingerprint != bundled.fingerprint
    assert vlm.fingerprint == fingerprint(vlm.model)


def test_no_such_folder(tmp_path):
    assert "nowhere is no directory; name a save_pretrained folder or a hub model" in refused(tmp_path / "nowhere")


def test_an_empty_path_is_not_the_bundled_model():
    assert "holds no config.json" in refused("")


def test_a_file(folder):
    assert "is no directory; name a save_pretrained folder" in refused(folder / WEIGHTS)


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "is no model directory: it holds no config.json" in refused(folder)


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert "holds no weights; Chronostat loads safetensors only" in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt"])
def test_only_pickles(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    assert f"holds only pickled weights ({name}); Chronostat loads safetensors only" in refused(folder)


def test_no_processor(folder):
    (folder / "processor_config.json").unlink()
    message = refused(folder)
    assert "has no" in message
    assert "processor" in message
    assert "into the folder" in message


def test_no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "has no usable processor" in refused(folder)


def test_a_text_only_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config["text_config"], "architectures": ["Qwen3MoeForCausalLM"]}))
    assert "is a 'qwen3_moe' model, which takes no image" in refused(folder)


def test_weights_that_are_missing(folder):
    weights = load_file(folder / WEIGHTS)
    lost = next(name for name in weights if "projector" in name)
    del weights[lost]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "lacks 1 weights of the model (model.multi_modal_projector" in refused(folder)


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "processor_config.json"])
def test_a_damaged_file(folder, file):
    (folder / file).write_text("{ damaged")
    assert str(folder) in refused(folder)


def test_a_wrong_layout():
    assert "unknown part 'tower'; known parts" in refused(None, layout={"tower": "lm_head"})
    assert "is no module of InternVLForConditionalGeneration" in refused(None, layout={"vision": "eyes"})


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model.device = 'cuda', but torch sees no CUDA device; use cpu or auto"):
        load_vlm(device="cuda")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_was_asked_for_runs(bundled, attention):
    vlm = load_vlm(device="cpu", attention=attention)
    assert vlm.model.config._attn_implementation == attention
    assert vlm.model.config.text_config._attn_implementation == attention
    assert vlm.fingerprint == bundled.fingerprint  # it is the same model


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_an_attention_that_is_not_installed(attention):
    said = refused(BUNDLED, attention=attention)
    assert said.startswith(f"attention {attention!r} cannot be used for {BUNDLED}: it is not installed, or")
    assert said.endswith("choose another, such as --attention sdpa (model.attention = 'sdpa')")


def test_an_attention_that_the_model_does_not_have(bundled, monkeypatch):
    monkeypatch.setattr(type(bundled.model), "_supports_sdpa", False)
    said = refused(BUNDLED, attention="sdpa")
    assert "does not support an attention implementation" in said  # the library's reason
    assert said.endswith("choose another, such as --attention eager (model.attention = 'eager')")


def test_another_reason_is_not_laid_on_the_attention(folder):
    (folder / WEIGHTS).write_bytes(b"none")
    said = refused(folder, attention="eager")
    assert said.startswith(f"cannot load {folder}")
    assert "choose another" not in said


def test_a_directory_has_no_revision(folder):
    with pytest.raises(ModelError, match="is a path, which has no revision 'v2'; revisions are those of hub models"):
        load_vlm(folder, revision="v2")


def test_the_revision_of_a_hub_model_is_asked_for(monkeypatch):
    asked = []

    def from_pretrained(source, **named):
        asked.append((source, named["revision"]))
        raise OSError("no network")

    monkeypatch.setattr("chronostat.models.load.AutoConfig.from_pretrained", from_pretrained)
    with pytest.raises(ModelError, match="no network"):
        load_vlm("owner/name", device="cpu", revision="v2")
    assert asked == [("owner/name", "v2")]
