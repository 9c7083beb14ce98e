"""What measuring adds to a ``generate()`` call: measured against bare calls, interleaved in random order.

``python -m benchmarks.overhead [--rounds N]``. Each round runs three arms once: bare, bare again and measured. Printed
is the median of the paired ratios measured / bare with its 95 % bootstrap interval, beside the same ratio of the two
bare arms (A/A), which shows what this machine can tell apart; likewise for the whole ``measure_generate`` call, with
the installing and removing of hooks. Raw values go to ``benchmarks/results/overhead.json``.
"""

import argparse

import numpy as np
import torch
from transformers import GenerationConfig

from benchmarks.common import format_estimate, median_ratio_interval, write_result
from benchmarks.stage_sleeps import demo_batch
from chronostat.measure.clock import clock_for
from chronostat.measure.conditions import read_conditions
from chronostat.measure.generate import measure_generate
from chronostat.models.load import Vlm, load_vlm

ARMS = ("bare", "bare again", "measured")
NEW_TOKENS = 8


def measure_rounds(vlm: Vlm, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round by arm; ``whole measured`` is the call with installing and removing of hooks."""
    batch, rng, clock = demo_batch(vlm), np.random.default_rng(0), clock_for(vlm.model.device)
    config = GenerationConfig(min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    taken_ms: dict[str, list[float]] = {arm: [] for arm in (*ARMS, "whole measured")}
    for _ in range(rounds + 2):
        for arm in rng.permutation(list(ARMS)):
            clock.synchronize()
            start_ns = clock.host_ns()
            if arm == "measured":
                timing = measure_generate(vlm.model, batch, max_new_tokens=NEW_TOKENS, generation_config=config).timing
                taken_ms["whole measured"].append(clock.host_ms_since(start_ns))
                taken_ms["measured"].append(timing.total_ms)
            else:
                vlm.model.generate(**batch, generation_config=config)
                clock.synchronize()
                taken_ms[arm].append(clock.host_ms_since(start_ns))
    return {arm: values[2:] for arm, values in taken_ms.items()}  # the first two rounds warm up


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="measured rounds (default 100)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the model runs (default cpu)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = load_vlm(device=options.device)
    taken_ms = measure_rounds(vlm, options.rounds)
    conditions = read_conditions(vlm.model)
    print(f"{options.rounds} rounds, {NEW_TOKENS} tokens, {conditions.cpu}, {conditions.device}")
    for label, arm in (
        ("A/A, bare again / bare", "bare again"),
        ("measured / bare", "measured"),
        ("whole measured call / bare", "whole measured"),
    ):
        ratio = median_ratio_interval(taken_ms[arm], taken_ms["bare"], np.random.default_rng(0))
        print(f"{label:28} {format_estimate(ratio)}   median {np.median(taken_ms[arm]):.2f} ms")
    print(write_result("overhead", conditions, {"taken_ms": taken_ms}))


if __name__ == "__main__":
    main()
