"""Options of the command line that benchmarks share."""

import argparse
from pathlib import Path

from benchmarks.kit.results import RESULTS


def plain_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's own docstring."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def resumable_parser(text: str | None) -> argparse.ArgumentParser:
    """The options that all resumable benchmarks have."""
    parser = plain_parser(text)
    parser.add_argument("--seconds", type=float, help="stop after so many seconds; the next call goes on")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default benchmarks/results)")
    parser.add_argument("--commit", help="commit of the code, where there is no git; or CHRONOSTAT_COMMIT")
    parser.add_argument("--show", action="store_true", help="print the tables of what was measured; measure nothing")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where models run (default cpu)")
    return parser
