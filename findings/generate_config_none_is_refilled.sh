#!/usr/bin/env bash
# A GenerationConfig cannot switch prompt lookup off: its None is filled again from the model's own configuration.
#
# Versions: transformers 5.23.0, torch 2.14.1. CPU only.
#
# Input: a tiny random Llama whose generation_config sets prompt_lookup_num_tokens=3, and
# model.generate(..., generation_config=GenerationConfig(prompt_lookup_num_tokens=None, do_sample=False, ...)).
#
# Expected: plain greedy decoding. The configuration given says so itself: get_generation_mode() answers
# GREEDY_SEARCH. The documentation of generate says that unspecified parameters inherit GenerationConfig's default
# values, and the default is None. It does not say that they inherit the model's values.
#
# Behaviour: generate runs assisted decoding. None counts as "not set", so the model's 3 replaces it, without a
# warning. The configuration given stays as it was, so reading it afterwards shows nothing. The tokens are the same,
# as they should be. What differs is the work done: how often the model is called, and with how many tokens.
#
# Two ways do switch it off, and this script checks both: the keyword argument generate(prompt_lookup_num_tokens=None),
# and None in model.generation_config. The number 0 does not: generate raises ValueError. With the keyword argument
# beside a GenerationConfig it works too (not checked here), but transformers warns that giving both is deprecated.
#
# Cause: _prepare_generation_config (generation/utils.py) updates the copy of the given configuration from
# self.generation_config with defaults_only=True, and a value that is None counts as a default. The keyword arguments
# are applied last, None included.
#
# How it is seen: a forward hook notes how many tokens each call of the model gets. Greedy decoding with a cache gets
# the prompt once, then one token a call. Assisted decoding gets candidate tokens beside them, and makes fewer calls.
#
# Exit status: 0 if it is still so, 1 if the behaviour has changed.
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet transformers==5.23.0 torch==2.14.1

export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=""

cat > "$work/generate.py" <<'PYTHON'
"""Ask for greedy decoding in several ways, and print how many tokens each call of the model got."""

import sys

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
model = LlamaForCausalLM(config).eval()
prompt = torch.tensor([[5, 6, 7, 8] * 4])
NEW = 8
GREEDY_CALLS = [prompt.shape[1]] + [1] * (NEW - 1)
lengths = []
model.register_forward_pre_hook(
    lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
)


def calls(title, **arguments):
    """Return the tokens per call of one generate, and the new tokens."""
    lengths.clear()
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **arguments)
    print(f"{title}: tokens per call {lengths}")
    return list(lengths), out[0, prompt.shape[1] :].tolist()


greedy = {"max_new_tokens": NEW, "do_sample": False}
wrong = []


def check(holds, what):
    if not holds:
        wrong.append(what)


plain, tokens = calls("model sets None, nothing asked       ", **greedy)
check(plain == GREEDY_CALLS, "greedy decoding has other calls than one token each")

model.generation_config.prompt_lookup_num_tokens = 3
assisted, same = calls("model sets 3, nothing asked          ", **greedy)
check(assisted != plain and same == tokens, "the model's own setting does not start prompt lookup")

asked = GenerationConfig(prompt_lookup_num_tokens=None, **greedy)
print(f"the configuration to be given says: {asked.get_generation_mode().name}")
check(asked.get_generation_mode().name == "GREEDY_SEARCH", "the configuration given no longer says greedy")
refilled, same = calls("model sets 3, GenerationConfig(None) ", generation_config=asked)
check(refilled == assisted and same == tokens, "a None in GenerationConfig now switches prompt lookup off")
check(asked.prompt_lookup_num_tokens is None, "generate now writes into the configuration given")

by_argument, same = calls("model sets 3, argument None          ", prompt_lookup_num_tokens=None, **greedy)
check(by_argument == plain and same == tokens, "the keyword argument None does not switch it off")

try:
    calls("model sets 3, GenerationConfig(0)    ", generation_config=GenerationConfig(prompt_lookup_num_tokens=0, **greedy))
    wrong.append("0 in GenerationConfig is now accepted")
except ValueError as error:
    print(f"model sets 3, GenerationConfig(0)    : ValueError: {error}")

model.generation_config.prompt_lookup_num_tokens = None
cleared, same = calls("model set back to None, same config  ", generation_config=asked)
check(cleared == plain and same == tokens, "None in model.generation_config does not switch it off")

if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
print("AS DESCRIBED: None in a GenerationConfig is filled again from the model's, and prompt lookup runs.")
PYTHON

"$python" "$work/generate.py" 2> "$work/err" || {
    cat "$work/err" >&2
    exit 1
}
if grep -i "prompt_lookup" "$work/err"; then
    echo "CHANGED: generate now says something about prompt_lookup_num_tokens"
    exit 1
fi

# Output seen:
#   model sets None, nothing asked       : tokens per call [16, 1, 1, 1, 1, 1, 1, 1]
#   model sets 3, nothing asked          : tokens per call [19, 1, 1, 1, 3, 1]
#   the configuration to be given says: GREEDY_SEARCH
#   model sets 3, GenerationConfig(None) : tokens per call [19, 1, 1, 1, 3, 1]
#   model sets 3, argument None          : tokens per call [16, 1, 1, 1, 1, 1, 1, 1]
#   model sets 3, GenerationConfig(0)    : ValueError: Invalid max_matching_ngram_size or num_output_tokens
#   model set back to None, same config  : tokens per call [16, 1, 1, 1, 1, 1, 1, 1]
#   AS DESCRIBED: None in a GenerationConfig is filled again from the model's, and prompt lookup runs.
