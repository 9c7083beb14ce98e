"""A PEFT adapter beside the weights is loaded and named, or refused; never is the base model measured in its name."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from chronostat.errors import ModelError
from chronostat.execution.conditions import read_conditions
from chronostat.models.load import BUNDLED, load_vlm

PREFIX = "base_model.model."
TARGETS = ("q_proj", "v_proj")
WEIGHTS = "adapter_model.safetensors"
peft_only = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture
def adapter(bundled, tmp_path):
    """A LoRA adapter of rank 2 for the language model, as peft writes it, that changes what comes out."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    metadata = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "owner/base"}
    target = rf".*language_model\..*\.({'|'.join(TARGETS)})"
    (folder / "adapter_config.json").write_text(json.dumps({**metadata, "target_modules": target}))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in bundled.model.named_modules():
        if "language_model" in name and name.endswith(TARGETS):
            rows, columns = module.weight.shape
            tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture
def folder(adapter, tmp_path):
    """The bundled model with the adapter's files beside it."""
    copy = shutil.copytree(BUNDLED, tmp_path / "model")
    return shutil.copytree(adapter, copy, dirs_exist_ok=True)


def refused(path):
    with pytest.raises(ModelError) as error:
        load_vlm(path, device="cpu")
    return str(error.value)


def test_without_peft_the_base_model_is_not_measured_under_the_adapters_name(folder, monkeypatch):
    monkeypatch.setattr("chronostat.models.adapters.find_spec", lambda _: None)
    said = refused(folder)
    assert said.startswith(f"{folder} holds an adapter (adapter_config.json, LORA), and peft, which loads it, is not")
    assert said.endswith("pip install peft, or move the adapter_ files out of the folder to use the base model")


def test_an_adapter_alone_names_its_base_model(adapter):
    said = refused(adapter)
    assert said.startswith(f"{adapter} holds an adapter (LORA) and no model; its base model is owner/base: put the")
    assert said.endswith("or merge it (merge_and_unload) and save the whole model")


def test_an_adapter_with_a_config_and_no_weights_of_the_model(folder):
    (folder / "model.safetensors").unlink()
    assert f"{folder} holds no weights" in refused(folder)


def test_a_damaged_adapter_configuration(adapter):
    (adapter / "adapter_config.json").write_text("{")
    assert "adapter_config.json: Expecting property name" in refused(adapter)


def test_a_model_without_an_adapter_says_so(bundled):
    assert read_conditions(bundled.model).adapter == "none"


@peft_only
def test_the_adapter_is_loaded_and_the_conditions_name_it(folder, bundled, demo_batch):
    vlm = load_vlm(folder, device="cpu")
    assert read_conditions(vlm.model).adapter == "default (LORA)"
    assert vlm.fingerprint != bundled.fingerprint
    stored = load_file(folder / WEIGHTS)
    name = next(name for name in stored if name.endswith("lora_A.weight"))
    layer = vlm.model.get_submodule(name.removeprefix(PREFIX).removesuffix(".weight"))
    assert torch.equal(layer["default"].weight, stored[name])
    with torch.no_grad():
        adapted, base = vlm.model(**demo_batch).logits, bundled.model(**demo_batch).logits
        assert not torch.allclose(adapted, base)
        vlm.model.disable_adapters()
        assert torch.equal(vlm.model(**demo_batch).logits, base)
    assert read_conditions(vlm.model).adapter == "none"


@peft_only
def test_a_pickled_adapter_is_not_read(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    said = refused(folder)
    assert "(adapter_config.json) without adapter_model.safetensors; Chronostat loads safetensors only" in said


@peft_only
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.popitem(), "does not fit the model beside it: 1 weights are missing or have no place"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "does not fit the model beside it: 1 weights"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, 3)}), "cannot load the adapter in"),
    ],
)
def test_an_adapter_that_does_not_fit(folder, change, said):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert said in refused(folder)


@peft_only
def test_weights_of_the_base_model_that_are_missing_are_not_hidden_by_an_adapter(folder):
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "projector" in name)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights of the model (model.multi_modal_projector" in refused(folder)
