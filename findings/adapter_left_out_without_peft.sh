#!/usr/bin/env bash
# One folder is two models: from_pretrained leaves an adapter out when peft is not installed.
#
# Versions: transformers 5.23.0, torch 2.14.1, safetensors as pip picks it; peft 0.21.2 and accelerate 1.15.0
# (with psutil 7.2.2) in a folder of their own, so that the same Python runs with and without them. CPU only.
#
# Input: a folder that save_pretrained wrote twice. A tiny random Llama wrote config.json and model.safetensors.
# peft then wrote adapter_config.json and adapter_model.safetensors (LoRA, r=2, on one linear layer).
#
# Expected: the same call on the same folder gives the same model. Where it cannot, because peft is missing,
# it raises, or at least warns that an adapter was left out.
#
# Behaviour: with peft, from_pretrained(folder) gives the adapter's logits. Without peft it gives the base model's
# logits. It raises nothing and says nothing about the adapter, not even at log level "info".
# AutoModelForCausalLM and LlamaForCausalLM do the same.
#
# Cause: find_adapter_config_file is asked only if is_peft_available() (models/auto/auto_factory.py and
# maybe_load_adapters in integrations/peft.py). Without peft nobody looks whether adapter_config.json is there.
#
# Exit status: 0 if it is still so, 1 if the behaviour has changed.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet transformers==5.23.0 torch==2.14.1
# The folder is not named peft: load.py lies beside it, and Python would take it for the package.
"$python" -m pip install --quiet --no-deps --target "$work/extra" peft==0.21.2 accelerate==1.15.0 psutil==7.2.2

export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 CUDA_VISIBLE_DEVICES=""

cat > "$work/make.py" <<'PYTHON'
"""Write full weights and an adapter into one folder, and the logits of both models beside it."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

work = sys.argv[1]
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
tokens = torch.arange(3, 11)[None]
base = LlamaForCausalLM(config).eval()
base.save_pretrained(f"{work}/model")
with torch.no_grad():
    base_logits = base(tokens).logits
    # init_lora_weights=False: B is random, not zero, so that the adapter changes the logits.
    lora = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora).eval()
    adapted_logits = adapted(tokens).logits
adapted.save_pretrained(f"{work}/model")
torch.save({"tokens": tokens, "base": base_logits, "adapter": adapted_logits}, f"{work}/logits.pt")
PYTHON

cat > "$work/load.py" <<'PYTHON'
"""Load the folder and print, for each class, which of the two models came out."""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, logging
from transformers.utils import is_peft_available

logging.set_verbosity_info()
work = sys.argv[1]
known = torch.load(f"{work}/logits.pt", weights_only=True)
print(f"peft available: {is_peft_available()}")
for loader in (AutoModelForCausalLM, LlamaForCausalLM):
    model = loader.from_pretrained(f"{work}/model").eval()
    with torch.no_grad():
        logits = model(known["tokens"]).logits
    apart = {name: (logits - known[name]).abs().max().item() for name in ("base", "adapter")}
    which = min(apart, key=apart.get)
    if apart[which] > 1e-6:
        which = "neither"
    print(f"{loader.__name__}: {which}")
    print(f"  largest |logits - base's| {apart['base']:.3g}, largest |logits - adapter's| {apart['adapter']:.3g}")
PYTHON

PYTHONPATH="$work/extra" "$python" "$work/make.py" "$work"
echo "The folder:"
ls "$work/model"

failed() {
    cat "$work/$1.err" >&2
    echo "CHANGED: from_pretrained $1 peft fails"
    exit 1
}

echo "--- from_pretrained without peft"
"$python" "$work/load.py" "$work" > "$work/without.out" 2> "$work/without.err" || failed without
cat "$work/without.out"
echo "--- from_pretrained with peft"
PYTHONPATH="$work/extra" "$python" "$work/load.py" "$work" > "$work/with.out" 2> "$work/with.err" || failed with
cat "$work/with.out"

changed() {
    echo "CHANGED: $1"
    exit 1
}
has() { grep -qx "$2" "$work/$1.out"; }

has without "peft available: False" || changed "peft is found although it is not installed"
has with "peft available: True" || changed "peft is not found although it is installed"
for loader in AutoModelForCausalLM LlamaForCausalLM; do
    has without "$loader: base" || changed "without peft $loader no longer gives the base model"
    has with "$loader: adapter" || changed "with peft $loader no longer gives the adapter"
done
# The folder's path is in some log lines and may hold such a word by chance, so it is taken out first.
if sed "s|$work||g" "$work/without.err" | grep -iE "adapter|peft|lora"; then
    changed "without peft the call now says something about the adapter"
fi
lines="$(wc -l < "$work/without.err")"
echo "AS DESCRIBED: without peft the adapter is left out, and none of the $lines lines logged names it."

# Output seen:
#   The folder:
#   README.md
#   adapter_config.json
#   adapter_model.safetensors
#   config.json
#   generation_config.json
#   model.safetensors
#   --- from_pretrained without peft
#   peft available: False
#   AutoModelForCausalLM: base
#     largest |logits - base's| 0, largest |logits - adapter's| 0.373
#   LlamaForCausalLM: base
#     largest |logits - base's| 0, largest |logits - adapter's| 0.373
#   --- from_pretrained with peft
#   peft available: True
#   AutoModelForCausalLM: adapter
#     largest |logits - base's| 0.373, largest |logits - adapter's| 0
#   LlamaForCausalLM: adapter
#     largest |logits - base's| 0.373, largest |logits - adapter's| 0
#   AS DESCRIBED: without peft the adapter is left out, and none of the 107 lines logged names it.
