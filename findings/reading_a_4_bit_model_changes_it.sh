#!/usr/bin/env bash
# Reading the state of a 4 bit layer changes what it computes, on CPUs with AVX-512 BF16.
#
# Versions: bitsandbytes 0.50.2, torch 2.14.1. CPU only.
#
# Input: one Linear4bit (NF4, 128 inputs, 64 outputs) with random weights, in evaluation mode, made as the library says.
#
# Expected: state_dict() reads. The same input gives the same output before and after it.
#
# Behaviour: the first forward packs the weight for a kernel of this kind of CPU, and rounds its scales to bfloat16 on the
# way. state_dict() unpacks the layer's own weight, in place, and the next forward packs it again, from the rounded
# scales. So each reading moves the output a little further, until the scales have settled. Forwards alone do not.
# Whoever saves, checks or counts a model between two calls has another model in the second one.
#
# Cause: Linear4bit._save_to_state_dict assigns the unpacked weight to the layer, and never packs it again itself.
#
# Exit status: 0 if it is still so, 1 if the behaviour has changed, 3 where the CPU has no AVX-512 BF16 to show it.
set -euo pipefail

grep -qm1 avx512_bf16 /proc/cpuinfo || { echo "NOT SHOWN: this CPU has no AVX-512 BF16"; exit 3; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet torch==2.14.1
"$python" -m pip install --quiet bitsandbytes==0.50.2

CUDA_VISIBLE_DEVICES="" "$python" - <<'PYTHON'
import sys

import bitsandbytes
import torch

torch.manual_seed(0)
layer = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
layer.weight = bitsandbytes.nn.Params4bit(torch.randn(64, 128), requires_grad=False, quant_type="nf4")
layer = layer.to("cpu").eval()
inputs = torch.randn(4, 128, dtype=torch.bfloat16)


@torch.no_grad()
def moved_by(first: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    output = layer(inputs).float()
    return output, 0.0 if first is None else ((output - first).norm() / first.norm()).item()


first, _ = moved_by(None)
by_calls = [moved_by(first)[1] for _ in range(4)]
by_reading = []
for _ in range(4):
    layer.state_dict()
    by_reading.append(moved_by(first)[1])
print("output moved by four more forwards:   ", " ".join(f"{each:.2e}" for each in by_calls))
print("with a state_dict() before each of them:", " ".join(f"{each:.2e}" for each in by_reading))
if any(by_calls) or not by_reading[0] > 0 or not by_reading[2] > by_reading[0]:
    print("CHANGED: reading the layer no longer moves its output, or calling it does")
    sys.exit(1)
print("AS DESCRIBED: each state_dict() moved the output, forwards alone did not.")
PYTHON

# Output seen:
#   output moved by four more forwards:    0.00e+00 0.00e+00 0.00e+00 0.00e+00
#   with a state_dict() before each of them: 1.07e-03 1.51e-03 2.15e-03 2.15e-03
#   AS DESCRIBED: each state_dict() moved the output, forwards alone did not.
