"""Bare and measured calls in blocks of random order, for any question that holds one against the other."""

import argparse
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any

from benchmarks.kit.blocks import Row, fill_rows, shuffled
from benchmarks.kit.calls import Caller, plain_timing
from benchmarks.kit.cells import Cell
from benchmarks.kit.estimates import row_ratio
from benchmarks.kit.question import Work

WARM_UPS = 2
PARTS_CALLS = 5


def add_pair_options(parser: argparse.ArgumentParser, default: str) -> None:
    """How many pairs; ``default`` says in words how many where none are asked for."""
    parser.add_argument("--pairs", type=int, help=f"pairs for each cell (default {default})")
    parser.add_argument("--again-every", type=int, default=3, help="a second bare call in every so many blocks (3)")


def open_pairs(work: Work, caller: Caller) -> Cell:
    """The cell, to go on with if its earlier pairs are of the same request."""
    return work.open(
        image_tokens=caller.image_tokens,
        prompt_tokens=caller.prompt_tokens,
        parameters=work.built.parameters,
    )


def warm_up(caller: Caller) -> float:
    """Both kinds of call, so that neither finds anything cold; how many seconds one takes."""
    started_s = perf_counter()
    for _ in range(WARM_UPS):
        caller.bare_ms()
        caller.measured()
    return (perf_counter() - started_s) / (2 * WARM_UPS)


def fill_pairs(work: Work, caller: Caller, cell: Cell, pairs: int, *, prepared: bool = False) -> bool:
    """Add the pairs that are missing, as far as the time goes; whether there are ``pairs``.

    Args:
        work: its ``--again-every``: in every so many blocks the bare call runs twice (A/A).
        caller: makes the calls, warm already.
        cell: gets ``rows``.
        pairs: in all.
        prepared: whether each block has a bare call right after what a measured call reads of the machine.
    """

    def block(index: int) -> Row:
        again = index % work.options.again_every == 0
        return _block(caller, index, ["bare", "measured", *["again"] * again, *["prepared"] * prepared])

    return fill_rows(cell, pairs, work.box, work.file, block)


def parts_of(caller: Caller) -> list[dict[str, float]]:
    """Where the time of some calls goes; see ``Caller.parts``."""
    return [caller.parts() for _ in range(PARTS_CALLS)]


def ratio_to_bare(rows: Iterable[Mapping[str, Any]], path: str, *, digits: int = 3) -> str:
    """A value over the bare call of the same block, where a block has it; ``again_ms`` is A/A."""
    return row_ratio([row for row in rows if path.partition(".")[0] in row], path, "bare_ms", digits=digits)


def _block(caller: Caller, index: int, arms: list[str]) -> Row:
    """Each arm once, in an order drawn for this block."""
    order = shuffled(arms, 0, index)
    row: Row = {"order": order}
    for arm in order:
        if arm == "measured":
            measured, row["whole_ms"] = caller.measured()
            row["timing"] = plain_timing(measured)
        else:
            row[f"{arm}_ms"] = caller.prepared_ms() if arm == "prepared" else caller.bare_ms()
    return row
