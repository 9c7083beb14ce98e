"""Write a widened copy of the bundled model: ``python -m recipes.widened --factor 32 --device cuda --out DIR``."""

import argparse
import sys
from pathlib import Path

import torch
from recipes.widened.widen import widen

from chronostat.errors import ChronostatError, ModelError
from chronostat.models.load import load_vlm


def main() -> int:
    """Parses the command line, widens and saves; what is wrong is said in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m recipes.widened", description=__doc__)
    parser.add_argument(
        "--factor", type=int, required=True, help="how often each channel of the text model is repeated"
    )
    parser.add_argument("--vision-factor", type=int, help="the same of the vision tower; half of factor if absent")
    parser.add_argument("--seed", type=int, default=0, help="draws the shares of the copies (default 0)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it is made (default cpu)")
    parser.add_argument("--out", type=Path, required=True, help="directory that does not exist yet")
    options = parser.parse_args()
    try:
        write(options)
    except ChronostatError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def write(options: argparse.Namespace) -> None:
    """Widen, and save model and processor.

    Raises:
        ModelError: the directory is there already, or a factor is below 1.
    """
    if options.out.exists():
        raise ModelError(f"{options.out} exists; name a directory that does not")
    small = load_vlm(device="cpu", dtype="float32")
    vision_factor = options.vision_factor or max(1, options.factor // 2)
    wide = widen(
        small.model,
        options.factor,
        vision_factor=vision_factor,
        seed=options.seed,
        device=options.device,
        dtype=getattr(torch, options.dtype),
    )
    wide.save_pretrained(options.out)
    small.processor.save_pretrained(options.out)
    weights = sum(parameter.numel() for parameter in wide.parameters())
    print(f"{weights:,} weights, {options.dtype}, in {options.out}")


if __name__ == "__main__":
    sys.exit(main())
