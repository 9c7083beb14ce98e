"""Writes a checkpoint of the first Molmo generation's shape: its code in the old style, weights and a processor."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from stand_ins.molmo_v1.configuration_molmo_v1 import MolmoV1Config
from stand_ins.molmo_v1.modeling_molmo_v1 import MolmoV1ForCausalLM

PROCESSOR = "processing_molmo_v1.MolmoV1Processor"
AUTO_MAP = {
    "AutoConfig": "configuration_molmo_v1.MolmoV1Config",
    "AutoModelForCausalLM": "modeling_molmo_v1.MolmoV1ForCausalLM",
}


def write_checkpoint(folder: Path, **config: object) -> Path:
    """A folder that only remote code can load; random weights, the same at each call."""
    folder.mkdir()
    for file in Path(__file__).parent.glob("*_molmo_v1.py"):
        shutil.copy(file, folder)
    settings = MolmoV1Config(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MolmoV1ForCausalLM(settings)
        for weight in model.parameters():
            if weight.ndim > 1:  # with random biases every answer would be one token again and again
                nn.init.normal_(weight, std=0.5)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**settings.to_dict(), "auto_map": AUTO_MAP}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"auto_map": {"AutoImageProcessor": "processing_molmo_v1.MolmoV1ImageProcessor"}})
    )
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "MolmoV1Processor", "auto_map": {"AutoProcessor": PROCESSOR}})
    )
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(settings.vocab_size)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder
